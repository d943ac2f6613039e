"""A disk that runs full, and what TensorBoard's files hold byte by byte."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event


class FullDisk:
    """Files can be written until ``room`` bytes are used up, then no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int):
        self.room = room
        write = os.write

        def limited(file: int, data: bytes) -> int:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return write(file, data)
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = write(file, memoryview(data)[: self.room])
            self.room -= written
            return written

        monkeypatch.setattr(os, "write", limited)


def read_events(run_dir: Path) -> list[Event]:
    """Every event of every events file, in the order of the files, nothing purged."""
    files = sorted(run_dir.glob("events.out.tfevents.*"))
    return [Event.FromString(raw) for file in files for raw in RawEventFileLoader(str(file)).Load()]


def count_values(run_dir: Path) -> Counter[tuple[str, int]]:
    """How often each (tag, step) is there."""
    return Counter((value.tag, event.step) for event in read_events(run_dir) for value in event.summary.value)


def scalars(run_dir: Path, tag: str) -> dict[int, float]:
    return {
        event.step: value.simple_value
        for event in read_events(run_dir)
        for value in event.summary.value
        if value.tag == tag
    }
