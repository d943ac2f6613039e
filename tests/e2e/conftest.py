"""A data set and a training small enough for every test, made by the real command."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from filelock import FileLock
from PIL import Image
from typer.testing import CliRunner

from detrkit.checkpoint import load_checkpoint
from detrkit.cli import app
from detrkit.curation.synthetic import write_synthetic
from detrkit.files import atomic_bytes
from detrkit.training.telemetry.log import RunLog

TRAIN_IMAGES, VAL_IMAGES, SIDE, BATCH, EPOCHS = 24, 8, 64, 4, 4
STEPS = TRAIN_IMAGES // BATCH * EPOCHS
COMMAND = (sys.executable, "-c", "from detrkit.cli import main; main()")
SETTINGS = {
    "transforms.scales": [SIDE],
    "transforms.eval_size": SIDE,
    "train.batch_size": BATCH,
    "train.warmup_steps": 0,
    "train.log_every": 1,
    "train.eval_every": 1,
    "train.device": "cpu",
    "data.workers": 0,
}


def train_arguments(data: Path, run: Path, epochs: int = EPOCHS, **settings: Any) -> list[str]:
    """A training of detr-tiny; keywords are settings with ``__`` for the dot."""
    changes = {**SETTINGS, **{key.replace("__", "."): value for key, value in settings.items()}}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in changes.items()}
    pairs = [part for key, text in texts.items() for part in ("--set", f"{key}={text}")]
    arguments = ["train", "--model", "detr-tiny", "--data", str(data), "--run", str(run)]
    return [*arguments, "--epochs", str(epochs), *pairs]


def start(arguments: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, as a person would start it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=pipe, stderr=pipe, text=True, env=environment, **options
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """Its standard output and error, once it has ended as it should."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}\n{out}\n{err}"
    assert "Traceback" not in out + err
    return out, err


def run_here(*arguments: str | Path) -> Result:
    """The command in this process, which saves the imports."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_well(*arguments: str | Path) -> str:
    """Standard output of a command that succeeds."""
    result = run_here(*arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.stdout


def run_until_step_2(arguments: Sequence[str]) -> None:
    """Run a training that is told to stop by SIGTERM after its second step."""
    advance = RunLog.advance

    def stop_at_step_2(log: RunLog, step: int, epoch: int) -> None:
        advance(log, step, epoch)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "advance", stop_at_step_2)
        assert run_here(*arguments).exit_code == 143


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def trained(run: Path) -> dict[str, Any]:
    """All that a training has come to, without what depends on the clock."""
    payload = load_checkpoint(run / "checkpoints" / "last.pt")
    return {key: payload[key] for key in ("model", "optimizer", "ema", "progress")}


def assert_equal(one: Any, two: Any, where: str = "") -> None:
    """Bit-equal, tensors inside lists and dicts too."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_equal(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for place, (left, right) in enumerate(zip(one, two, strict=True)):
            assert_equal(left, right, f"{where}[{place}]")
    else:  # NaN is equal to NaN here
        assert one == two or (one != one and two != two), where


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished training: its folder, and what the command printed."""

    run: Path
    out: str
    err: str


def made_once(name: str, make: Callable[[Path], None], factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the processes of tests share: the first to come makes it, the others wait."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder)
    return folder


def draw_little(_charts: object, path: Path, **_options: object) -> Path:
    """Write a small picture in place of charts."""
    with atomic_bytes(path, durable=False) as file:
        Image.new("RGB", (80, 30)).save(file, "PNG")
    return path


@pytest.fixture(scope="module", autouse=True)
def little_is_drawn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Read and build all curves, but draw them only where a test is of that: it takes as long as six steps."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem not in ("test_demo", "test_docs", "test_plot"):
            patch.setattr("detrkit.visual.picture.draw_charts", draw_little)
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        write_synthetic(folder, train_images=TRAIN_IMAGES, val_images=VAL_IMAGES, size=SIDE, seed=1)

    return made_once("shapes", make, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that ended well. Nobody writes into it: see ``copy_of``."""

    def make(folder: Path) -> None:
        folder.mkdir()
        out, err = finish(start(train_arguments(tiny_data, folder / "tiny")))
        (folder / "out.txt").write_text(out, encoding="utf-8")
        (folder / "err.txt").write_text(err, encoding="utf-8")

    folder = made_once("tiny-run", make, tmp_path_factory)
    texts = [(folder / name).read_text(encoding="utf-8") for name in ("out.txt", "err.txt")]
    return Trained(folder / "tiny", *texts)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a folder, so that a test may spoil it."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy-{folder.name}"))

    return copy
