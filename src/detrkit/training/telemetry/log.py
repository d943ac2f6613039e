"""Log of a run: metrics.jsonl, TensorBoard, trackers, and a progress bar or plain lines."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import msgspec
import numpy as np
import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from detrkit.config import Config
from detrkit.data.loader import LoadingFacts
from detrkit.files import plain_value
from detrkit.training.telemetry.append import AppendFile, cut_lines, write_problem
from detrkit.training.telemetry.bottleneck import advise
from detrkit.training.telemetry.records import StepRecord, config_text, flat_config, telling_config
from detrkit.training.telemetry.tensorboard import TensorBoardLog, remove_events
from detrkit.training.telemetry.trackers import Trackers

__all__ = ["Ending", "RunLog", "StepRecord", "host_gib", "memory_gib"]

_LINES_TO_JUDGE = 2
"""A single line with much waiting may be an accident."""

_MAIN_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "mask_AP", "PQ")

Ending = Literal["success", "interrupted", "failed"]


class RunLog:
    """Writer of a run's records; to be used in ``with``.

    Args:
        run_dir: run folder.
        total_steps: steps of the whole training, for the bar and the time left.
        start_step: steps made before, if the run is resumed.
        resume_at: result of :meth:`position` at the checkpoint; what was written after it is cut off. None for a
            run that begins, from which everything of a former one in the folder is removed.
        loading: how data is loaded, to name a remedy where training waits for it; None to say nothing.
        config: config of the run: names the trackers, and is shown beside the curves.
        enabled: False writes and shows nothing: all processes but the first.
        console: where progress is shown; standard error if not given.

    Raises:
        MissingExtraError: A tracker's package is not installed.
        TrainingError: A tracker refuses.
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        *,
        start_step: int = 0,
        resume_at: Mapping[str, Any] | None = None,
        loading: LoadingFacts | None = None,
        config: Config | None = None,
        enabled: bool = True,
        console: Console | None = None,
    ):
        self.records = 0
        self.total_steps = total_steps
        self.ending: Ending = "success"
        self.run_dir = run_dir
        self._enabled = enabled
        self._console = console or Console(stderr=True)
        self._loading = loading
        self._waits: deque[float] = deque(maxlen=_LINES_TO_JUDGE)
        self._is_first_line = True
        self._advised: set[str] = set()
        self._told_full = False
        position = resume_at or {}
        # what TensorBoard has of the last step and a resumed run must give it again; None once that is evaluated
        self._of_step: Mapping[str, float] | None = position.get("of_step")
        self._seconds_before = float(position.get("elapsed_s", 0.0))
        self._began_s = time.monotonic()
        if not enabled:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        self._bar = _build_bar(self._console)
        self._task: TaskID = self._bar.add_task(
            "train", total=total_steps, completed=start_step, epoch="", loss="", rate=""
        )
        train = (config or Config()).train
        params = flat_config(config) if config is not None else {}
        names = train.trackers if config is not None else ("tensorboard",)
        self._trackers = Trackers(names, run_dir, project=train.project, params=params, say=self._say)
        wanted = int(position.get("records", 0))
        self.records = cut_lines(run_dir / "metrics.jsonl", wanted)
        if self.records < wanted:
            lines = f"{self.records:,} lines, the checkpoint knew {wanted:,}"
            self._say(f"WARNING: {run_dir / 'metrics.jsonl'} has {lines}: its curves have a gap")
        self._file = AppendFile(run_dir / "metrics.jsonl")
        if resume_at is None:
            remove_events(run_dir)
        self._board: TensorBoardLog | None = None
        if "tensorboard" in names:
            first = start_step + (self._of_step is None)
            self._board = TensorBoardLog(run_dir, first if resume_at is not None else None)
            if self._of_step:
                self._board.log_values(self._of_step, start_step)
            if config is not None and resume_at is None:
                metrics = ["eval/AP", "eval/AP50", "loss/total", *(["eval/mask_AP"] if config.model.masks else [])]
                self._board.log_config(config_text(config), telling_config(config), metrics)

    def __enter__(self) -> RunLog:
        if self._enabled and self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._enabled:
            return
        if self._console.is_terminal:  # elsewhere it was never started, and stopping prints an empty line
            self._bar.stop()
        if self._board is not None:
            self._board.close()
        self._file.close()
        self._trackers.close("failed" if error is not None else self.ending)

    def position(self) -> dict[str, Any]:
        """Return the place that a resumed :class:`RunLog` goes on from, for a checkpoint; primitives only.

        Everything written so far is on the disk first: no checkpoint knows of more than power loss leaves.

        Raises:
            CheckpointError: The disk is full, or cannot be written.
        """
        if not self._enabled:
            return {}
        self._file.sync()
        if self._board is not None:
            self._board.sync()
        return {"records": self.records, "elapsed_s": self._elapsed_s(), "of_step": self._of_step}

    def advance(self, step: int, epoch: int) -> None:
        """Move the bar."""
        self._of_step = {}
        if self._enabled:
            self._bar.update(self._task, completed=step, epoch=f"epoch {epoch}")

    def step(self, record: StepRecord) -> None:
        """Write a line of training progress."""
        if not self._enabled:
            return
        elapsed = {"elapsed_s": round(self._elapsed_s(), 3)}
        self._write("step", record.step, record.epoch, {**elapsed, **record.values()})
        self._of_step = record.tags()
        self._send(self._of_step, record.step)
        rate = (
            f"{record.images_per_s:.1f} img/s, waits {record.data_wait:.0%} for data, {record.memory_gib:.1f} GiB"
        )
        self._bar.update(self._task, loss=f"loss {record.loss:.4f}", rate=rate)
        if not self._console.is_terminal:
            where = f"epoch {record.epoch} step {record.step}/{self.total_steps}"
            self._say(f"{where} loss {record.loss:.4f} lr {record.lrs.get('model', math.nan):.2e} {rate}")
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
        """Write and show what an evaluation gave; NaN is what could not be measured, such as no large object."""
        if not self._enabled:
            return
        self._of_step = None
        self._write("eval", step, epoch, metrics)
        self._send({f"eval/{name}": value for name, value in metrics.items() if not math.isnan(value)}, step)
        shown = [name for name in _MAIN_METRICS if name in metrics]
        numbers = "  ".join(
            f"{name} " + ("-" if math.isnan(metrics[name]) else f"{metrics[name]:.3f}") for name in shown
        )
        name = best_metric(metrics)
        of = "" if name == "AP" else f"{name} "
        self._say(f"epoch {epoch} eval: {numbers}{f'  (best {of}so far)' if best else ''}")

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
        """Show pictures beside the curves: (name, uint8 ``[H, W, 3]`` RGB)."""
        if not self._enabled or not samples:
            return
        pictures = [(f"samples/{name}", image) for name, image in samples]
        if self._board is not None:
            self._board.log_images(pictures, step)
        self._trackers.log_images(pictures, step)
        self._tell_if_full()

    def _say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _elapsed_s(self) -> float:
        """Return the seconds of training, earlier sessions included, the time between them not."""
        return self._seconds_before + time.monotonic() - self._began_s

    def _write(self, kind: str, step: int, epoch: int, values: Mapping[str, Any]) -> None:
        record = {"kind": kind, "step": step, "epoch": epoch, **values}
        # null for what JSON has no word for: NaN, infinity
        plain = msgspec.json.decode(msgspec.json.encode(record, enc_hook=plain_value))
        self._file.append((json.dumps(plain) + "\n").encode())
        self.records += 1
        self._tell_if_full()

    def _send(self, values: Mapping[str, float], step: int) -> None:
        """Give values to TensorBoard and the trackers."""
        if self._board is not None:
            self._board.log_values(values, step)
        self._trackers.log_values({tag: value for tag, value in values.items() if math.isfinite(value)}, step)
        self._tell_if_full()

    def _tell_if_full(self) -> None:
        """Say once that something cannot be written; the next checkpoint insists."""
        stuck = next((each for each in (self._file, self._board) if each and each.problem is not None), None)
        if stuck is not None and not self._told_full:
            self._say(f"WARNING: {write_problem(stuck.path, stuck.problem)}; free space: no checkpoint without it")
        self._told_full = stuck is not None


def best_metric(metrics: Mapping[str, float]) -> str:
    """Return the number of an evaluation by which the best model is chosen: PQ, AP of masks or AP of boxes."""
    return next((name for name in ("PQ", "mask_AP") if name in metrics), "AP")


def memory_gib(device: torch.device) -> float:
    """Return the peak GPU memory of this process, or its resident memory on the CPU, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return host_gib()


def host_gib() -> float:
    """Return the resident memory of this process in GiB, its workers not counted."""
    return float(psutil.Process().memory_info().rss) / 2**30


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
