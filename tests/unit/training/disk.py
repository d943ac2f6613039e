"""A disk that runs full."""

from __future__ import annotations

import errno
import os
import stat

import pytest


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
