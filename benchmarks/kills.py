"""Trainings killed at random moments, and whether they end as if nothing had been: bit by bit.

    python -m benchmarks.kills --kills 20 --seed 0
    python -m benchmarks.kills --without progress.batch

A run of detr-tiny on drawn images, with all that a checkpoint has to care for (shuffling, mosaic and other random
augmentation, dropout, averaged weights, accumulation, bf16, a cosine schedule with warm-up, saves inside epochs),
is killed by SIGKILL, at a random time or inside a chosen operation, and resumed until it ends; its checkpoints,
metrics.jsonl and TensorBoard's events are compared with those of one that was never interrupted. Temporary files
are on another file system than the run. ``--without`` shows that the comparison sees what it should: it resumes
with one part of the checkpoint missing.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.killing import Ended, Moment, Victims, differences

TRAIN_IMAGES, VAL_IMAGES, SIDE, EPOCHS = 16, 6, 64, 4
SAVE_EVERY, LOG_EVERY = 3, 2
SETTINGS: dict[str, Any] = {
    "model.dropout": 0.1,
    "transforms.recipe": "mosaic",
    "transforms.scales": [48, 56, SIDE],
    "transforms.eval_size": SIDE,
    "train.batch_size": 2,
    "train.accumulate": 2,
    "train.lr": 4e-3,
    "train.schedule": "cosine",
    "train.warmup_steps": 3,
    "train.ema_decay": 0.9,
    "train.precision": "bf16",
    "train.save_every_steps": SAVE_EVERY,
    "train.log_every": LOG_EVERY,
    "train.eval_every": 1,
    "train.log_images": 1,
    "train.device": "cpu",
    "data.buckets": True,
}

SMALL_REALTIME: dict[str, Any] = {
    "model.hidden_dim": 32,
    "model.encoder_dim": 32,
    "model.ffn_dim": 32,
    "model.encoder_ffn_dim": 32,
    "model.decoder_layers": 2,
    "model.num_queries": 8,
    "train.init": "none",
    "aids.denoising": 8,
}
"""What a real-time model is trained with besides, so that it is small, and draws noise."""

PLANS: tuple[tuple[str, ...], ...] = (
    ("time",),
    ("write",),
    ("time", "time"),
    ("rename",),
    ("evaluation",),
    ("sync", "cut"),
    ("log", "time"),
    ("time", "load"),
    ("step", "rename"),
    ("start", "write", "start"),
)
"""Moments at which a run, and then its resumption, are killed; ``time`` is any."""

COMPONENTS = (
    "model",
    "optimizer",
    "ema.count",
    "ema.weights",
    "window.rows",
    "health.rows",
    "alarms",
    "progress.step",
    "progress.epoch",
    "progress.batch",
    "log.records",
    "log.layout",
)
"""Parts of a checkpoint that this run needs; tests/unit/training/test_resuming.py has scenes for all of them."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run, killed one or more times.

    Args:
        kills: What was killed where, in words.
        problems: What it has otherwise than the uninterrupted run, or what else went wrong.
    """

    kills: tuple[str, ...]
    problems: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Scene:
    """A data set, the uninterrupted run on it, and how often and how long its moments came."""

    folder: Path
    data: Path
    reference: Path
    ended: Ended
    resumed: Ended
    preset: str = "detr-tiny"

    def arguments(self, run: Path, workers: int, *, go_on: bool) -> list[str]:
        """The command that begins a run, or goes on with it."""
        own = {} if self.preset.startswith("detr") else SMALL_REALTIME
        pairs = [
            part
            for key, value in {**SETTINGS, **own, "data.workers": workers}.items()
            for part in ("--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}")
        ]
        command = ["train", "--model", self.preset, "--data", str(self.data), "--run", str(run)]
        return [*command, "--epochs", str(EPOCHS), *pairs, *(["--resume"] if go_on else [])]


def draw_data(root: Path, seed: int = 0) -> Path:
    """A data set in COCO layout with one or two large rectangles an image, which are soon found."""
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 1, "name": "blue"}, {"id": 2, "name": "red"}]
    for split, count in (("train", TRAIN_IMAGES), ("val", VAL_IMAGES)):
        (root / f"{split}2017").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            height, width = (int(side) for side in rng.integers(SIDE * 3 // 4, SIDE + 1, 2))
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            for _ in range(int(rng.integers(1, 3))):
                w, h = int(width * rng.uniform(0.5, 0.8)), int(height * rng.uniform(0.5, 0.8))
                x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                category = int(rng.integers(1, 3))
                pixels[y : y + h, x : x + w] = (30, 30, 240) if category == 1 else (240, 30, 30)
                box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "category_id": category}
                annotations.append({"id": len(annotations) + 1, "image_id": number, **box})
            Image.fromarray(pixels).save(root / f"{split}2017" / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def make_scene(folder: Path, victims: Victims, preset: str = "detr-tiny") -> Scene:
    """Draw the data, and train without interruption; once more from its checkpoint, to know what resuming does."""
    scene = Scene(
        folder, draw_data(folder / "data"), folder / "reference", Ended(0, 0, "", {}), Ended(0, 0, "", {}), preset
    )
    ended = victims.run(scene.arguments(scene.reference, 0, go_on=False))
    if ended.code != 0:
        raise RuntimeError(f"the uninterrupted run ended with {ended.code}:\n{ended.said}")
    stopped = folder / "stopped"
    victims.run(scene.arguments(stopped, 0, go_on=False), Moment("step", 10))
    resumed = victims.run(["resume", str(stopped)])
    shutil.rmtree(stopped)
    return dataclasses.replace(scene, ended=ended, resumed=resumed)


def try_to_lose(scene: Scene, victims: Victims, plan: Sequence[str], workers: int, seed: str) -> Trial:
    """Kill a run as planned, resume it until it ends, and compare."""
    rng = random.Random(seed)
    run = scene.folder / f"run-{seed}"
    kills: list[str] = []
    problems: list[str] = []
    for moment in plan:
        typical = scene.resumed if kills else scene.ended
        before = scene.folder / f"before-{seed}"
        if run.exists():  # a kill may come before a run has a folder
            shutil.copytree(run, before)
        for _ in range(8):
            ended, words = _kill_once(scene, victims, run, workers, moment, typical, rng)
            if ended.was_killed:
                kills.append(words)
                problems += _after_kill(run)
                break
            if ended.code:
                return Trial(tuple(kills), (f"ended with {ended.code}: {ended.said[-2000:]}",))
            # it ended before the moment came: once more from where it was, at a moment that is known to come
            if moment != "time" and not ended.counts.get(moment):  # none is left, after its last checkpoint
                break
            shutil.rmtree(run)
            if before.exists():
                shutil.copytree(before, run)
            typical = ended
        shutil.rmtree(before, ignore_errors=True)
    if not kills:
        return Trial((), ("it was never killed",))
    ended = victims.run(_go_on(scene, run, workers, rng))
    if ended.code:
        return Trial(tuple(kills), (f"ended with {ended.code}: {ended.said[-2000:]}",))
    problems += differences(scene.reference, run)
    if not problems:
        shutil.rmtree(run)
    return Trial(tuple(kills), tuple(problems))


def _kill_once(
    scene: Scene, victims: Victims, run: Path, workers: int, moment: str, typical: Ended, rng: random.Random
) -> tuple[Ended, str]:
    arguments = _go_on(scene, run, workers, rng)
    if moment == "time":
        seconds = rng.uniform(0, typical.seconds)
        ended = victims.run(arguments, kill_after_s=seconds)
        return ended, f"{arguments[0]} after {seconds:.1f} s{_where(run)}"
    at = rng.randint(1, max(1, typical.counts.get(moment, 1)))
    ended = victims.run(arguments, Moment(moment, at))
    return ended, f"{arguments[0]} at {moment} {at}{_where(run)}"


def _where(run: Path) -> str:
    step = _last_step(run)
    return f" (step {step})" if step else " (before the first step was logged)"


def _go_on(scene: Scene, run: Path, workers: int, rng: random.Random) -> list[str]:
    """How a person goes on with a run: by either command, where both can."""
    if (run / "config.yaml").exists() and rng.random() < 0.5:
        return ["resume", str(run)]
    return scene.arguments(run, workers, go_on=True)


def _last_step(run: Path) -> int:
    log = run / "metrics.jsonl"
    lines = log.read_text(errors="replace").splitlines(keepends=True) if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def _after_kill(run: Path) -> list[str]:
    """What must hold at any moment: no file under a final name is damaged, and few steps are lost."""
    from detrkit.checkpoint import load_checkpoint

    payloads = {path.name: load_checkpoint(path) for path in (run / "checkpoints").glob("*.pt")}
    steps = [payload["progress"]["step"] for name, payload in payloads.items() if name != "best.pt"]
    lost = _last_step(run) - max(steps, default=0)
    return [] if lost <= SAVE_EVERY else [f"{lost} steps lost, expected {SAVE_EVERY} at most"]


def kill_and_compare(
    kills: int, seed: int, workers: Sequence[int], folder: Path, temporary: Path
) -> Iterator[tuple[int, Trial]]:
    """Runs killed by each plan in turn; gives the number of workers and the trial."""
    with Victims(folder / "victims", temporary) as victims:
        scene = make_scene(folder, victims)
        for number in range(kills):
            for count in workers:
                plan = PLANS[number % len(PLANS)]
                yield count, try_to_lose(scene, victims, plan, count, f"{seed}-{number}-{count}")


def resume_without(component: str, scene: Scene, victims: Victims) -> list[str]:
    """What differs if a run is resumed without one part of its checkpoint; empty if it cannot be seen."""
    run = scene.folder / f"without-{component}"
    # in the last evaluation: saved last inside the epoch and inside a log window, and logged since
    victims.run(scene.arguments(run, 0, go_on=False), Moment("evaluation", (EPOCHS - 1) * VAL_IMAGES + 2))
    ended = victims.run(["resume", str(run)], without=component)
    if ended.code:
        return [f"it cannot be resumed: {ended.said.strip().splitlines()[-1]}"]
    return differences(scene.reference, run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="runs to kill, for each number of workers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--without", choices=(*COMPONENTS, "all"), help="resume without a part of the checkpoint")
    parser.add_argument("--temporary", type=Path, default=Path("/dev/shm"), help="TMPDIR of the runs")
    parser.add_argument("--folder", type=Path, help="where the runs lie; deleted at the end if not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as made:
        folder = arguments.folder or Path(made)
        if arguments.without:
            return _without(arguments.without, folder, arguments.temporary)
        return _with_all(arguments, folder)


def _with_all(arguments: argparse.Namespace, folder: Path) -> int:
    found: dict[int, list[Trial]] = collections.defaultdict(list)
    options = (arguments.kills, arguments.seed, arguments.workers, folder, arguments.temporary)
    for workers, trial in kill_and_compare(*options):
        found[workers].append(trial)
        print(
            f"workers {workers}: {'; '.join(trial.kills)}: {'; '.join(trial.problems[:5]) or 'equal'}", flush=True
        )
    for workers, trials in found.items():
        equal = sum(not trial.problems for trial in trials)
        kills = sum(len(trial.kills) for trial in trials)
        print(f"workers {workers}: {equal} of {len(trials)} runs equal to the last bit, {kills} kills")
    return int(any(trial.problems for trials in found.values() for trial in trials))


def _without(component: str, folder: Path, temporary: Path) -> int:
    seen = True
    with Victims(folder / "victims", temporary) as victims:
        scene = make_scene(folder, victims)
        for name in COMPONENTS if component == "all" else (component,):
            found = resume_without(name, scene, victims)
            seen &= bool(found)
            print(f"without {name}: {len(found)} differences: {'; '.join(found[:3]) or 'NONE'}", flush=True)
    return int(not seen)


if __name__ == "__main__":
    sys.exit(main())
