"""Runs that break off anywhere and go on, compared bit by bit; and what shows that each saved part is missing."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from detrkit.checkpoint import CheckpointStore, load_checkpoint
from detrkit.errors import CheckpointError, DetrkitError
from detrkit.training import alarms, health
from detrkit.training.loop import FitResult, build_state
from tests.support.killing import differences, without
from tests.unit.training.conftest import Toy, toy_config, toy_loader


class Killed(BaseException):
    """As abrupt as a process can end itself: nothing is saved on its way."""


class FatefulLoader:
    """The toy's batches; some have boxes without area, and at one of them the run is killed.

    Numbers of batches count from the beginning of the run.
    """

    def __init__(self, spoiled: frozenset[int] = frozenset(), kill_at: float = math.inf):
        self.inner = toy_loader(14, 2)
        self.batch_sampler = self.inner.batch_sampler
        self.spoiled, self.kill_at = spoiled, kill_at

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Any]:
        sampler = self.batch_sampler
        first = sampler.epoch * sampler.num_batches + sampler.start_batch
        for number, batch in enumerate(self.inner, start=first):
            if number >= self.kill_at:
                raise Killed
            if number in self.spoiled:
                flat = batch.truth.boxes_cxcywh.clone()
                flat[:, 2:] = 0
                batch = dataclasses.replace(batch, truth=dataclasses.replace(batch.truth, boxes_cxcywh=flat))
            yield batch


@dataclasses.dataclass(frozen=True)
class Scene:
    """A training, the batch at which it is killed, and the saved parts that it shows to be needed."""

    parts: tuple[str, ...]
    kill_at: float
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    scores: tuple[float, ...] = (0.1, 0.3, 0.2)
    spoiled: frozenset[int] = frozenset()
    half: bool = False

    @property
    def config(self) -> Any:
        always = {"epochs": 3, "log_every": 2, "ema_decay": 0.9, "save_every_steps": 3}
        return toy_config(**{**always, "schedule": "cosine", "warmup_steps": 2, **self.train})

    def fabric(self) -> Fabric | None:
        if not self.half:
            return None
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        return Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", device="cpu", scaler=scaler))


# 7 batches an epoch.
SCENES = {
    # 4 steps an epoch; saved last at step 9: inside an epoch, inside a log window
    "plain": Scene(
        (
            *("model", "optimizer", "ema.count", "ema.weights", "alarms", "world_size"),
            *("window.rows", "window.steps", "window.image_ids", "health.rows", "health.use", "health.last_use"),
            *("progress.step", "progress.epoch", "progress.batch", "progress.best", "log.records"),
        ),
        kill_at=19,
        train={"accumulate": 2},
    ),
    "patience": Scene(
        ("progress.evals_without_gain",),
        kill_at=24,
        train={"epochs": 9, "patience": 3},
        scores=(0.5, 0.4, 0.3, 0.2, 0.1),
    ),
    "after-the-end": Scene(
        ("progress.metrics",), kill_at=math.inf, train={"epochs": 9, "patience": 1}, scores=(0.5, 0.4)
    ),
    "little-memory": Scene(("progress.micro_batch",), kill_at=10, train={"pixel_budget": 32 * 32}),
    "bad-steps": Scene(
        ("progress.bad_steps",),
        kill_at=12,
        train={"max_bad_steps": 3, "save_every_steps": 1},
        spoiled=frozenset((10, 11, 12)),
    ),
    "many-bad-steps": Scene(("progress.bad_steps_saved",), kill_at=16, spoiled=frozenset((2, 5, 9, 13, 17, 19))),
    "float16": Scene(("scaler",), kill_at=17, half=True),
}

# Clocks, and what other tests need: a model cannot be read without its config and classes; telemetry/test_log.
UNCOMPARED = {
    *("config", "class_map", "data", "format", "version"),
    *("window.names", "window.seconds", "window.wait_s", "window.images", "log.elapsed_s", "log.of_step"),
}


@dataclasses.dataclass(frozen=True)
class Played:
    """A scene's uninterrupted run, the killed one, and how the first ended."""

    scene: Scene
    whole: Path
    killed: Path
    ending: str

    def killed_run(self) -> Path:
        """The killed run at its own place, which its log tells."""
        run = self.killed.with_name("run")
        shutil.rmtree(run, ignore_errors=True)
        return Path(shutil.copytree(self.killed, run))


def play(scene: Scene, run: Path, *, kill_at: float = math.inf, resume: Any = None) -> str:
    """Train; returns how that ended, in words."""
    toy = Toy(run, list(scene.scores), fabric=scene.fabric())
    if resume is not None:  # evaluations go on where they were
        toy.evaluated = [{}] * resume["progress"]["epoch"]
    try:
        result: FitResult = toy.fit(scene.config, loader=FatefulLoader(scene.spoiled, kill_at), resume=resume)  # type: ignore[arg-type]
    except Killed:
        return "killed"
    except DetrkitError as error:
        return str(error).replace(str(run), "RUN")
    return str(dataclasses.replace(result, run_dir=Path("RUN")))


def fresh_state(scene: Scene) -> dict[str, Any]:
    from detrkit.distributed import make_fabric

    fabric = scene.fabric() or make_fabric(scene.config.train)
    return build_state(scene.config, Toy(Path()).model(), fabric)[0].state_dict()


def compare(played: Played, run: Path, ending: str) -> list[str]:
    """All that is not as in the uninterrupted run."""
    found = differences(played.whole, run)
    return found if ending == played.ending else [f"ended with {ending}, expected {played.ending}", *found]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Played]]:
    """Plays a scene once: to its end, and to its kill."""
    folder = tmp_path_factory.mktemp("scenes")
    found: dict[str, Played] = {}

    def find(name: str) -> Played:
        if name not in found:
            scene = SCENES[name]
            run, whole, killed = (folder / name / part for part in ("run", "whole", "killed"))
            ending = play(scene, run)
            run.rename(whole)
            how = play(scene, run, kill_at=scene.kill_at)
            run.rename(killed)
            assert how == ("killed" if math.isfinite(scene.kill_at) else ending)
            found[name] = Played(scene, whole, killed, ending)
        return found[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alarms, "BLOCK", 4)  # so that there is something to remember
        patch.setattr(health, "MATCHES_TO_JUDGE", 4)
        yield find


@pytest.mark.parametrize("name", SCENES)
def test_killed_run_ends_as_the_uninterrupted_one(name: str, stage: Callable[[str], Played]):
    played = stage(name)
    run = played.killed_run()
    ending = play(played.scene, run, resume=CheckpointStore(run).load_latest())
    assert compare(played, run, ending) == []


@pytest.mark.parametrize(("name", "part"), [(name, part) for name in SCENES for part in SCENES[name].parts])
def test_without_any_one_saved_part_it_would_not(name: str, part: str, stage: Callable[[str], Played]):
    played = stage(name)
    run = played.killed_run()
    payload = without(CheckpointStore(run).load_latest(), fresh_state(played.scene), part)
    try:
        problems = compare(played, run, play(played.scene, run, resume=payload))
    except (ValueError, KeyError, IndexError) as error:  # it cannot even go on
        problems = [str(error)]
    assert problems != []


def test_every_saved_part_has_a_scene(stage: Callable[[str], Played]):
    payload = load_checkpoint(CheckpointStore(stage("plain").killed).last_path)
    parts = set(payload)
    for key in ("ema", "window", "health", "progress", "log"):
        parts.remove(key)
        parts |= {f"{key}.{name}" for name in payload[key]}
    shown = {part for scene in SCENES.values() for part in scene.parts}
    assert parts - UNCOMPARED == shown


@pytest.mark.parametrize("kill_at", [0, 1, 7, 8, 13, 14, 20])
def test_run_is_resumed_from_any_batch(kill_at: int, stage: Callable[[str], Played], tmp_path: Path):
    played = stage("float16")
    run = tmp_path / "run"
    assert play(played.scene, run, kill_at=kill_at) == "killed"
    store = CheckpointStore(run)
    ending = play(played.scene, run, resume=store.load_latest() if store.has_any() else None)
    assert compare(played, run, ending) == []


def test_save_at_the_end_of_an_epoch_keeps_its_line(tmp_path: Path):
    """The last step of the epoch is saved before the evaluation, in which the run is killed."""
    scene = Scene((), kill_at=math.inf, train={"save_every_steps": 7})
    whole, run = tmp_path / "whole", tmp_path / "run"
    play(scene, whole)

    def die(_model: Any) -> dict[str, float]:
        raise Killed

    with pytest.raises(Killed):
        Toy(run).fit(scene.config, loader=FatefulLoader(), evaluate=die)  # type: ignore[arg-type]
    payload = CheckpointStore(run).load_latest()
    assert (payload["progress"]["step"], payload["progress"]["batch"]) == (7, 7)
    play(scene, run, resume=payload)
    epochs = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"epoch"' in line[:17]
    ]
    assert [record["epoch"] for record in epochs] == [1, 2, 3]
    assert differences(whole, run) == []


def test_evaluation_whose_best_model_could_not_be_saved_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A disk that is full for a moment: the state is saved a moment later, without an evaluation half noted."""
    scene = Scene((), kill_at=math.inf, train={"save_every_steps": None})
    whole, run = tmp_path / "whole", tmp_path / "run"
    play(scene, whole)

    def full(*_args: Any) -> None:
        raise CheckpointError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save_best", full)
        assert play(scene, run) == "no space left"
    payload = CheckpointStore(run).load_latest()
    assert (payload["progress"]["step"], payload["progress"]["best"]) == (7, None)
    play(scene, run, resume=payload)
    assert differences(whole, run) == []
