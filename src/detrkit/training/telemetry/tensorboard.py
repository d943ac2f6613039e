"""TensorBoard's events files of a run, through torch's SummaryWriter.

A resumed run writes one more file, which begins by telling TensorBoard to forget the steps after the checkpoint:
they are made and written again. Nothing in this room imports TensorBoard before a log is opened.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrkit.training.telemetry.append import no_checkpoint

_PREFIX = "events.out.tfevents."
_LONGEST_SIDE = 960
"""Longest side of a picture in pixels: larger ones make files that TensorBoard takes long to read."""

_LONGEST_WAIT_S = 5.0


class TensorBoardLog:
    """Writer of one events file in a run folder, beside those of the run's earlier sessions.

    TensorBoard's writer has a thread, which ends at the first error, such as a full disk. The values after it are
    lost, so that the next checkpoint must not be made: see :meth:`sync`.

    Args:
        run_dir: run folder.
        forget_from: first step that is written again; None for a run that begins.
    """

    def __init__(self, run_dir: Path, forget_from: int | None = None):
        from torch.utils.tensorboard import SummaryWriter

        self.path = run_dir / f"{_PREFIX}*"
        self.problem: OSError | None = None
        self._former_hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        _wait_for_a_later_name(run_dir)
        self._writer: Any = None
        try:
            self._writer = SummaryWriter(str(run_dir), purge_step=forget_from)
        except OSError as error:
            self.problem = error

    def log_values(self, values: Mapping[str, float], step: int) -> None:
        """Write the values of a step."""
        self._add({"value": [{"tag": tag, "simple_value": value} for tag, value in values.items()]}, step)

    def log_images(self, images: Sequence[tuple[str, np.ndarray]], step: int) -> None:
        """Write pictures: (tag, uint8 ``[H, W, 3]`` RGB)."""
        for tag, pixels in images:
            image = Image.fromarray(pixels)
            image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
            content = io.BytesIO()
            image.save(content, "JPEG", quality=88)
            picture: dict[str, Any] = {"height": image.height, "width": image.width, "colorspace": 3}
            picture["encoded_image_string"] = content.getvalue()
            self._add({"value": [{"tag": tag, "image": picture}]}, step)

    def log_config(self, text: str, params: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Write the config: as Markdown, and as what the HPARAMS page compares runs by, beside some metrics."""
        from torch.utils.tensorboard import summary

        experiment, start, _end = summary.hparams(dict(params), dict.fromkeys(metrics, 0.0))  # type: ignore[no-untyped-call]
        for part in (summary.text("config", text), experiment, start):  # type: ignore[no-untyped-call]
            self._add(part, 0)

    def sync(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            CheckpointError: It cannot be written, or something before it could not.
        """
        try:
            if self.problem is None:
                self._writer.flush()
                with max(self.path.parent.glob(f"{_PREFIX}*")).open("rb") as newest:
                    os.fsync(newest.fileno())
        except OSError as error:
            self.problem = error
        if self.problem is not None:
            raise no_checkpoint(self.path, self.problem)

    def close(self) -> None:
        """Write what waits, and close the file."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        threading.excepthook = self._former_hook

    def _add(self, summary: Any, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]

        if self.problem is None:
            try:
                self._writer.file_writer.add_summary(
                    Summary(**summary) if isinstance(summary, dict) else summary, step
                )
            except OSError as error:
                self.problem = error

    def _on_thread_error(self, arguments: threading.ExceptHookArgs) -> None:
        """Keep the writer's thread from printing a traceback: its error is raised by the next call, too."""
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            self._former_hook(arguments)


def remove_events(run_dir: Path) -> None:
    """Delete the events files of a run that begins anew."""
    for path in run_dir.glob(f"{_PREFIX}*"):
        path.unlink()


def _wait_for_a_later_name(run_dir: Path) -> None:
    """Wait until the clock gives a file name behind those of earlier sessions: TensorBoard reads by name."""
    names = [path.name.removeprefix(_PREFIX).split(".")[0] for path in run_dir.glob(f"{_PREFIX}*")]
    newest = max((int(name) for name in names if name.isdecimal()), default=0)
    until = time.monotonic() + _LONGEST_WAIT_S  # the clock of another machine may be wrong by hours
    while int(time.time()) <= newest and time.monotonic() < until:
        time.sleep(0.05)
