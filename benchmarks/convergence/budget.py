"""How long a training may take, and how many epochs that is: found by a short rehearsal of the same config."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.convergence import peer_training
from benchmarks.convergence.data_sets import Files, write_subset
from detrkit.config import Config, update_config
from detrkit.errors import UsageError
from detrkit.training import loop
from detrkit.visual.history import read_metrics_log

AIM = 0.97
"""Share of the minutes that training is planned to take: no two epochs take the same time."""

POINTS = 12
"""Evaluations of a training, about."""

REHEARSED_BATCHES = 30
REHEARSED_EPOCHS = 3

OnEvaluation = Callable[[int, Mapping[str, float]], bool]
Train = Callable[[Config, Path, OnEvaluation | None], None]
"""Trains by a config in a new run folder, which then holds metrics.jsonl; stops when it is told to."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a training may take: minutes or epochs.

    Args:
        minutes: Of training, evaluations not counted.
        epochs: Passes over the images.
        cpu: True if time is the CPU's at work for this process, whatever else runs on the machine: then trainings
            of one thread each can be measured side by side.

    Raises:
        UsageError: Neither or both are given, or nothing is left to do.
    """

    minutes: float | None = None
    epochs: int | None = None
    cpu: bool = False

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.epochs is None):
            raise UsageError("give the budget either as --minutes or as --epochs")
        if not (self.minutes or 0) > 0 and not (self.epochs or 0) > 0:
            raise UsageError(f"the budget is {self}; expected more than nothing")

    def __str__(self) -> str:
        if self.minutes is not None:
            return f"{60 * self.minutes:g} CPU s" if self.cpu else f"{self.minutes:g} min"
        return f"{self.epochs} epoch" + ("" if self.epochs == 1 else "s")

    def now(self) -> float:
        """Seconds of the clock that counts."""
        return time.process_time() if self.cpu else time.monotonic()

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        """Let both training loops time their epochs by the clock that counts."""
        plain, times = time, SimpleNamespace(monotonic=self.now)
        try:
            loop.time = peer_training.time = times  # type: ignore[attr-defined]
            yield
        finally:
            loop.time = peer_training.time = plain  # type: ignore[attr-defined]


def epochs_within(minutes: float, seconds_per_epoch: float) -> int:
    """Epochs that :data:`AIM` of the minutes has room for; at least one, whatever it takes."""
    return max(1, math.floor(AIM * 60 * minutes / seconds_per_epoch))


def evaluations_every(epochs: int) -> int:
    """Epochs between evaluations, for about :data:`POINTS` of them."""
    return max(1, round(epochs / POINTS))


def measure_epoch(train: Train, config: Config, files: Files, work: Path) -> float:
    """Seconds of an epoch, loading included, from a few short epochs of the same training.

    The first of them warms up and does not count. They are the first of very many, so that what training does at
    its end, such as leaving out augmentation, does not make them cheaper.

    Args:
        train: Of the competitor.
        config: To train by.
        files: The data set.
        work: An empty folder, deleted at the end.
    """
    shutil.rmtree(work, ignore_errors=True)
    batch, images = config.train.batch_size * config.train.accumulate, files.train_count()
    count = min(images, REHEARSED_BATCHES * batch)
    changes: dict[str, Any] = {
        "data.train_annotations": str(write_subset(files.train_annotations, work / "train.json", count).resolve()),
        "data.val_annotations": str(write_subset(files.val_annotations, work / "val.json", 1).resolve()),
        "train.epochs": 1000,
        "train.eval_every": REHEARSED_EPOCHS,
        "train.log_images": 0,
        "train.trackers": [],
    }
    train(update_config(config, changes), work / "run", lambda _epoch, _metrics: True)
    seconds = epoch_seconds(work / "run")[1:]
    shutil.rmtree(work)
    return statistics.fmean(seconds) * math.ceil(images / batch) / math.ceil(count / batch)


def epoch_seconds(run_dir: Path) -> list[float]:
    """Seconds of each epoch of a run, without its evaluation."""
    records = read_metrics_log(run_dir / "metrics.jsonl")
    return [float(record["seconds"]) for record in records if record["kind"] == "epoch"]
