"""TensorBoard's events files, written so that a resumed run has each value exactly once.

The events themselves are torch's and TensorBoard's; the file is ours: :class:`AppendFile` knows its size at
every moment, so that a checkpoint can note it and a resumed run can cut it. TensorBoard's own writer does its
work in a thread, where neither is possible and a full disk ends in a traceback.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from lightning_fabric.loggers import Logger
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import custom_scalars, hparams, text

from detrkit.training.telemetry.append import AppendFile, cut

_PREFIX = "events.out.tfevents."
_LONGEST_SIDE = 960
"""Of a picture: larger ones make files that TensorBoard takes long to read."""

_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4


class TensorBoardLog(Logger):
    """Writes one events file in a run folder, beside those of the run's earlier sessions.

    Args:
        run_dir: The run folder.
        start_step: Steps made before; a TensorBoard that has read later ones forgets them.
    """

    def __init__(self, run_dir: Path, *, start_step: int = 0):
        self.run_dir = run_dir
        self._file = AppendFile(_new_path(run_dir))
        self._framed = io.BytesIO()
        self._writer: Any = RecordWriter(self._framed)  # type: ignore[no-untyped-call]
        self._add(Event(file_version="brain.Event:2"))
        if start_step:
            start = SessionLog(status=SessionLog.SessionStatus.Value("START"))
            self._add(Event(session_log=start, step=start_step + 1))

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run_dir.name

    @property
    def version(self) -> str:
        """There is one version of a run folder."""
        return ""

    @property
    def file(self) -> AppendFile:
        """The events file being written."""
        return self._file

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write values of a step, as one event."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        if values:
            self._add(Event(summary=Summary(value=values), step=step or 0))

    def log_images(self, images: Sequence[tuple[str, np.ndarray]], step: int) -> None:
        """Write pictures: (tag, uint8 ``[H, W, 3]`` RGB)."""
        for tag, pixels in images:
            image = Image.fromarray(pixels)
            image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
            content = io.BytesIO()
            image.save(content, "JPEG", quality=88)
            encoded = Summary.Image(
                height=image.height, width=image.width, colorspace=3, encoded_image_string=content.getvalue()
            )
            self._add(Event(summary=Summary(value=[Summary.Value(tag=tag, image=encoded)]), step=step))

    def log_text(self, tag: str, content: str) -> None:
        """Write a text in Markdown."""
        self._add(Event(summary=text(tag, content)))  # type: ignore[no-untyped-call]

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, metrics: Sequence[str] = (), *_args: Any, **_kwargs: Any
    ) -> None:
        """Write what the HPARAMS page compares runs by, and the tags of the metrics it shows beside."""
        values = vars(params) if isinstance(params, Namespace) else params
        experiment, start, _end = hparams(dict(values), dict.fromkeys(metrics, 0.0))  # type: ignore[no-untyped-call]
        for summary in (experiment, start):
            self._add(Event(summary=summary))

    def log_layout(self, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Write which tags share a chart on the CUSTOM SCALARS page: tags by chart by category."""
        charts = {
            category: {title: ["Multiline", list(tags)] for title, tags in titles.items()}
            for category, titles in layout.items()
        }
        self._add(Event(summary=custom_scalars(charts)))  # type: ignore[no-untyped-call]

    def save(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            CheckpointError: It cannot be written.
        """
        self._file.sync()

    def finalize(self, status: str) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
        self._file.append(self._framed.getvalue())
        self._framed.seek(0)
        self._framed.truncate()


def events_files(run_dir: Path) -> dict[str, int]:
    """Size in bytes of every events file of a run, by name."""
    return {path.name: path.stat().st_size for path in sorted(run_dir.glob(f"{_PREFIX}*"))}


def cut_events(run_dir: Path, sizes: Mapping[str, int]) -> list[str]:
    """Bring the events files of a run back to what they were; newer ones are deleted.

    Args:
        run_dir: The run folder.
        sizes: What :func:`events_files` told then.

    Returns:
        What people should know: files that hold less than they did.
    """
    found, problems = events_files(run_dir), []
    for name in found.keys() - sizes.keys():
        (run_dir / name).unlink()
    for name, size in sizes.items():
        path = run_dir / Path(name).name  # sizes come from a file; nothing outside the folder is touched
        if name not in found:
            problems.append(f"{path} is missing: TensorBoard lacks the steps that it held")
            continue
        whole = size
        if found[name] < size:
            whole = _whole_records(path)
            problems.append(
                f"{path} has {found[name]:,} bytes, the checkpoint knew {size:,}: TensorBoard lacks some steps"
            )
        cut(path, whole)
    return problems


def _whole_records(path: Path) -> int:
    """Bytes of a file up to its last whole record."""
    with path.open("rb") as file:
        return max(_record_ends(file), default=0)


def _record_ends(file: IO[bytes]) -> Iterator[int]:
    length = os.fstat(file.fileno()).st_size
    end = 0
    while len(header := file.read(_HEADER.size)) == _HEADER.size:
        end += _HEADER.size + _HEADER.unpack(header)[0] + _FOOTER_BYTES
        if end > length:
            return
        yield end
        file.seek(end)


def _new_path(run_dir: Path) -> Path:
    """A name behind those of all earlier files, the order in which TensorBoard reads them."""
    seconds = int(time.time())
    for name in events_files(run_dir):
        with contextlib.suppress(ValueError):
            seconds = max(seconds, int(name.removeprefix(_PREFIX).split(".")[0]) + 1)
    return run_dir / f"{_PREFIX}{seconds:010d}.{socket.gethostname()}.{os.getpid()}.0"
