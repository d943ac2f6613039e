"""Trainings killed, interrupted, damaged or out of disk space: each is resumed and ends as if nothing had been."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kills import PLANS, Scene, kill_and_compare, make_scene, try_to_lose
from detrkit.checkpoint import load_checkpoint
from tests.support.killing import Moment, Victims, differences

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and uses Linux's signals and file systems")

TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Path]:
    """A temporary folder on another file system than the runs, where there is one."""
    folder = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / f"detrkit-kills-{os.getpid()}"
    folder.mkdir()
    yield folder
    # a cache folder of torch is no leftover
    left = sorted(path.name for path in folder.rglob("*") if not path.name.startswith("torchinductor"))
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture(scope="module")
def victims(elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    with Victims(tmp_path_factory.mktemp("victims"), elsewhere) as found:
        yield found


@pytest.fixture(scope="module")
def scene(victims: Victims, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("scene"), victims)


@pytest.fixture(scope="module")
def stopped(scene: Scene, victims: Victims) -> Path:
    """A run that was killed in its eleventh step, two checkpoints behind it: of steps 8 and 9."""
    run = scene.folder / "stopped"
    assert victims.run(scene.arguments(run, 0, go_on=False), Moment("step", 11)).was_killed
    return run


@pytest.fixture
def copied(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def go_on(run: Path, scene: Scene, victims: Victims) -> str:
    """Resume a run to its end, which must be that of the uninterrupted one; what was said."""
    ended = victims.run(["resume", str(run)])
    assert ended.code == 0, ended.said
    assert differences(scene.reference, run) == []
    return ended.said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "workers"), [(("step", "cut"), 0), (("write",), 2), (("rename",), 0)], ids=lambda value: str(value)
)
def test_killed_run_ends_as_the_uninterrupted_one(
    plan: tuple[str, ...], workers: int, scene: Scene, victims: Victims
):
    trial = try_to_lose(scene, victims, plan, workers, f"7-{'-'.join(plan)}-{workers}")
    assert len(trial.kills) == len(plan)
    assert trial.problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["rtdetr-nano", "dfine-n"])
def test_killed_run_of_a_real_time_model_ends_as_the_uninterrupted_one(
    preset: str, victims: Victims, tmp_path: Path
):
    scene = make_scene(tmp_path, victims, preset)
    trials = [try_to_lose(scene, victims, plan, 0, f"3-{'-'.join(plan)}") for plan in (("step", "cut"), ("time",))]
    assert [trial.problems for trial in trials] == [(), ()]
    assert [len(trial.kills) for trial in trials] == [2, 1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_runs_killed_at_random_moments_end_as_the_uninterrupted_one(
    workers: int, tmp_path: Path, elsewhere: Path
):
    trials = [trial for _, trial in kill_and_compare(20, 0, [workers], tmp_path, elsewhere)]
    assert [trial.problems for trial in trials] == [()] * 20
    # one killed after its last checkpoint has no such moment left; more are not lost, whatever the machine's load
    assert sum(len(trial.kills) for trial in trials) >= sum(map(len, PLANS)) * 2 - 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number", "workers", "group"),
    [
        (Moment("evaluation", 8), TERM, 0, False),
        (Moment("loader", 1), INT, 2, True),
        (Moment("step", 6), TERM, 2, True),
        (Moment("evaluation", 8), INT, 2, True),
        (Moment("evaluation", 8), TERM, 2, True),
        (Moment("loader", 1), TERM, 2, True),
        (Moment("write", 5000), TERM, 0, False),
        (Moment("write", 5000), INT, 2, True),
        (Moment("rename", 20), TERM, 2, True),
        (Moment("log", 9), INT, 0, False),
    ],
)
def test_signal_saves_and_the_exit_code_is_that_of_a_shell(
    moment: Moment, number: int, workers: int, group: bool, scene: Scene, victims: Victims, tmp_path: Path
):
    run = tmp_path / "run"
    sent = Moment(moment.name, moment.at, (number,), group)
    ended = victims.run(scene.arguments(run, workers, go_on=False), sent)
    assert ended.code == 128 + number, ended.said
    assert f"go on with: detrkit resume {run}" in ended.said
    assert "Traceback" not in ended.said
    steps = re.findall(r'"kind": "step", "step": (\d+)', (run / "metrics.jsonl").read_text())
    saved = load_checkpoint(run / "checkpoints" / "last.pt")["progress"]["step"]
    assert saved >= max(map(int, steps), default=0)  # not one step is lost
    go_on(run, scene, victims)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (Moment("write", 9000), TERM),
        (Moment("step", 10), INT),
        (Moment("rename", 31), TERM),
        (Moment("sync", 50), INT),
    ],
)
def test_second_signal_aborts_at_once_and_loses_nothing_saved(
    moment: Moment, number: int, scene: Scene, victims: Victims, tmp_path: Path
):
    run = tmp_path / "run"
    sent = Moment(moment.name, moment.at, (number, number))
    ended = victims.run(scene.arguments(run, 0, go_on=False), sent)
    assert ended.code == 128 + number, ended.said
    assert "error: interrupted" in ended.said
    assert "Traceback" not in ended.said
    assert all(load_checkpoint(path) for path in (run / "checkpoints").glob("*.pt"))
    go_on(run, scene, victims)


@pytest.mark.slow
def test_signal_while_it_starts_leaves_a_folder_that_can_be_used(scene: Scene, victims: Victims, tmp_path: Path):
    run = tmp_path / "run"
    arguments = scene.arguments(run, 0, go_on=True)
    for at in range(1, 9):
        number = (TERM, INT)[at % 2]
        ended = victims.run(arguments, Moment("start", at, (number,)))
        # nothing is there to be saved: SIGTERM ends the process by itself, which a shell shows as 143
        assert ended.code == (-TERM if number == TERM else 130), ended.said
        assert "Traceback" not in ended.said
    assert victims.run(arguments).code == 0
    assert differences(scene.reference, run) == []


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


@pytest.mark.slow
def test_damaged_newest_checkpoint_is_recognised_and_the_one_before_is_used(
    copied: Path, scene: Scene, victims: Victims
):
    checkpoints = copied / "checkpoints"
    flip_a_bit(checkpoints / "last.pt")
    said = go_on(copied, scene, victims)
    assert f"WARNING: {checkpoints / 'last.pt'} is damaged" in said
    assert "using previous.pt instead" in said
    assert "resumed at step 8" in said
