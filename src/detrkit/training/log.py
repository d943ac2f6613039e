"""What a run tells while it trains: metrics.jsonl, TensorBoard, and a progress bar or plain lines."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from detrkit.data.loader import LoadingFacts
from detrkit.training.bottleneck import advise

_LINES_TO_JUDGE = 2
"""A single line with much waiting may be an accident."""

_MAIN_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """One line of training progress, averaged over the steps since the line before.

    Args:
        step: Optimiser steps made.
        epoch: Epoch of the step, from 0.
        loss: Weighted sum over terms and layers.
        terms: Unweighted value of each term.
        lrs: Learning rate of ``model`` and ``backbone``.
        grad_norm: Before clipping.
        images_per_s: Over all processes.
        data_wait: Share of the time spent waiting for data, 0 to 1.
        memory_gib: Peak of the GPU's memory, or the resident memory of the process.
    """

    step: int
    epoch: int
    loss: float
    terms: Mapping[str, float]
    lrs: Mapping[str, float]
    grad_norm: float
    images_per_s: float
    data_wait: float
    memory_gib: float


class RunLog:
    """Writes a run's records; to be used in ``with``.

    Args:
        run_dir: The run folder.
        total_steps: Steps of the whole training, for the bar and the time left.
        start_step: Steps made before, if the run is resumed.
        keep_records: Lines of an existing metrics.jsonl that stay; the rest came after the checkpoint.
        loading: How data is loaded, to name a remedy where training waits for it; None to say nothing.
        enabled: False writes and shows nothing: all processes but the first.
        console: Where progress is shown; standard error if not given.
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        *,
        start_step: int = 0,
        keep_records: int = 0,
        loading: LoadingFacts | None = None,
        enabled: bool = True,
        console: Console | None = None,
    ):
        self.records = 0
        self.total_steps = total_steps
        self._enabled = enabled
        self._console = console or Console(stderr=True)
        self._loading = loading
        self._waits: deque[float] = deque(maxlen=_LINES_TO_JUDGE)
        self._is_first_line = True
        self._advised: set[str] = set()
        if not enabled:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / "metrics.jsonl"
        self.records = _keep_lines(path, keep_records)
        self._file = path.open("a", encoding="utf-8")
        purge_step = start_step + 1 if start_step else None
        self._board = SummaryWriter(str(run_dir), purge_step=purge_step)
        self._bar = _build_bar(self._console)
        self._task: TaskID = self._bar.add_task(
            "train", total=total_steps, completed=start_step, epoch="", loss="", rate=""
        )

    def __enter__(self) -> RunLog:
        if self._enabled and self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            if self._console.is_terminal:  # elsewhere it was never started, and stopping prints an empty line
                self._bar.stop()
            self._board.close()
            self._file.close()

    def advance(self, step: int, epoch: int) -> None:
        """Move the bar."""
        if self._enabled:
            self._bar.update(self._task, completed=step, epoch=f"epoch {epoch}")

    def step(self, record: StepRecord) -> None:
        """Write a line of training progress."""
        if not self._enabled:
            return
        losses = {f"loss_{name}": value for name, value in record.terms.items()}
        rates = {"lr" if name == "model" else f"lr_{name}": value for name, value in record.lrs.items()}
        speed = {"images_per_s": record.images_per_s, "data_wait": record.data_wait}
        values = {"loss": record.loss, **losses, **rates, "grad_norm": record.grad_norm, **speed}
        values["memory_gib"] = record.memory_gib
        self._write("step", record.step, record.epoch, values)
        for name, value in values.items():
            self._board.add_scalar(f"train/{name}", value, record.step)
        rate = (
            f"{record.images_per_s:.1f} img/s, waits {record.data_wait:.0%} for data, {record.memory_gib:.1f} GiB"
        )
        self._bar.update(self._task, loss=f"loss {record.loss:.4f}", rate=rate)
        if not self._console.is_terminal:
            where = f"epoch {record.epoch} step {record.step}/{self.total_steps}"
            self._say(f"{where} loss {record.loss:.4f} lr {rates.get('lr', math.nan):.2e} {rate}")
        self._advise(record)

    def _advise(self, record: StepRecord) -> None:
        """Name the remedy if training waits for data, each remedy once."""
        if self._loading is None:
            return
        if self._is_first_line:  # has the start of the workers in it
            self._is_first_line = False
            return
        self._waits.append(record.data_wait)
        if len(self._waits) < _LINES_TO_JUDGE:
            return
        advice = advise(min(self._waits), self._loading)
        if advice is not None and advice.kind not in self._advised:
            self._advised.add(advice.kind)
            self.event(record.step, record.epoch, advice.sentence)

    def evaluation(self, step: int, epoch: int, metrics: Mapping[str, float], *, best: bool) -> None:
        """Write and show what an evaluation gave."""
        if not self._enabled:
            return
        self._write("eval", step, epoch, metrics)
        for name, value in metrics.items():
            self._board.add_scalar(f"eval/{name}", value, step)
        shown = [name for name in _MAIN_METRICS if name in metrics]
        numbers = "  ".join(f"{name} {_three_digits(metrics[name])}" for name in shown)
        self._say(f"epoch {epoch} eval: {numbers}{'  (best so far)' if best else ''}")

    def epoch(self, step: int, epoch: int, seconds: float) -> None:
        """Write that an epoch's training is done."""
        if self._enabled:
            self._write("epoch", step, epoch, {"seconds": seconds})

    def event(self, step: int, epoch: int, message: str) -> None:
        """Write and show something that happened."""
        if self._enabled:
            self._write("event", step, epoch, {"message": message})
            self._say(message)

    def images(self, step: int, samples: Sequence[tuple[str, np.ndarray]]) -> None:
        """Put pictures into TensorBoard: (name, uint8 ``[H, W, 3]`` RGB)."""
        if self._enabled:
            for name, image in samples:
                self._board.add_image(f"samples/{name}", image, step, dataformats="HWC")

    def flush(self) -> None:
        """Hand everything written so far to the disk."""
        if self._enabled:
            self._file.flush()
            self._board.flush()

    def _say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _write(self, kind: str, step: int, epoch: int, values: Mapping[str, Any]) -> None:
        record = {"kind": kind, "step": step, "epoch": epoch, **values}
        clean = {name: None if _is_non_finite(value) else value for name, value in record.items()}
        self._file.write(json.dumps(clean, allow_nan=False) + "\n")
        self._file.flush()
        self.records += 1


def memory_gib(device: torch.device) -> float:
    """Peak GPU memory of this process, or its resident memory on the CPU, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


def _three_digits(metric: float) -> str:
    """COCO's -1 means that there is nothing to measure, such as no large object."""
    return "-" if metric < 0 else f"{metric:.3f}"


def _is_non_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _keep_lines(path: Path, count: int) -> int:
    """Cut a file after its first ``count`` whole lines; returns how many there are now."""
    if not path.exists():
        return 0
    kept, size = 0, 0
    with path.open("rb") as file:
        for line in file:
            if kept == count or not line.endswith(b"\n"):
                break
            kept += 1
            size += len(line)
    with path.open("r+b") as file:
        file.truncate(size)
    return kept


def _build_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.fields[epoch]}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        console=console,
    )
