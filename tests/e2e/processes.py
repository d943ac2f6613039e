"""Trainings of several processes for the tests: started, killed, compared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.conftest import assert_equal, records, train_arguments, trained

CLOCK = ("elapsed_s", "images_per_s", "data_wait", "memory_gib")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def arguments(data: Path, run: Path, epochs: int = 3, **settings: Any) -> list[str]:
    """Three images of a process at once, which divide neither the training images of an epoch nor the others."""
    common = {
        "train__batch_size": 5,
        "train__ema_decay": 0.9,
        "train__save_every_steps": 2,
        "train__log_every": 4,
        "train__trackers": [],
        "data__workers": 1,
    }
    return train_arguments(data, run, epochs, **{**common, **settings})


def torchrun(command: Sequence[str], *, processes: int = 2, options: Sequence[str] = ()) -> subprocess.Popen[str]:
    """``torchrun ... -m detrkit COMMAND``; after ``--`` nothing is taken for an option of torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    options = options or ("--standalone",)
    return popen([*launcher, *options, "-m", "--", "detrkit", *command])


def popen(command: Sequence[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT, start_new_session=True)


def ended(process: subprocess.Popen[str], timeout: float = 500) -> tuple[int, str, str]:
    """Exit code, standard output and error."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Until a run's records tell of a step."""
    end = time.monotonic() + 900
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        if (run / "metrics.jsonl").exists() and any(r["step"] >= step for r in whole_records(run)):
            return
        time.sleep(0.02)
    raise AssertionError(f"{run} never came to step {step}")


def whole_records(run: Path) -> list[dict[str, Any]]:
    """Records of a run that is being written."""
    try:
        return [*records(run, "step"), *records(run, "eval"), *records(run, "epoch")]
    except ValueError:  # the last line is half written
        return []


def rank_of(process: psutil.Process) -> str | None:
    try:
        environment = process.environ()
    except psutil.Error:
        return None
    # loader workers have the same environment: the training process is the child of one without a rank
    parent = process.parent()
    return environment.get("RANK") if parent is not None and "RANK" not in parent.environ() else None


def training_process(launcher: subprocess.Popen[str], rank: int | None) -> psutil.Process:
    """The process of a rank, or any; not one of its loader's workers."""
    ranks = {child: rank_of(child) for child in psutil.Process(launcher.pid).children(recursive=True)}
    return next(child for child, own in ranks.items() if own is not None and rank in (None, int(own)))


def told(run: Path) -> list[dict[str, Any]]:
    """All that a run has recorded, without what depends on the clock and on interruptions."""
    rows = [*records(run, "step"), *records(run, "eval")]
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def assert_same_training(one: Path, two: Path) -> None:
    assert told(one) == told(two)
    assert_equal(trained(one), trained(two))
