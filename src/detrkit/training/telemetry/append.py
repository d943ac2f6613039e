"""Files that grow line by line, lose nothing on a full disk, and can be cut back to a checkpoint."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from detrkit.errors import CheckpointError
from detrkit.files import sync_folder


class AppendFile:
    """A file that is only appended to, in whole pieces.

    What cannot be written, as on a full disk, is kept in memory, in its order, and tried again with the next
    piece; the file itself never ends in half a piece. Nothing runs in the background: a writer thread that
    dies of a full disk would take what it had queued with it, and end with a traceback of its own.

    Args:
        path: The file; made if it is not there, otherwise what is there stays.
    """

    def __init__(self, path: Path):
        self.path = path
        self.problem: OSError | None = None
        self._file: int | None = None
        self._waiting: list[bytes] = []
        self._is_new = not path.exists()
        self.size = 0 if self._is_new else path.stat().st_size
        self._write()

    @property
    def waiting(self) -> int:
        """Pieces not in the file yet."""
        return len(self._waiting)

    def append(self, piece: bytes) -> bool:
        """Add a piece; False if it has to wait, for the reason in :attr:`problem`."""
        self._waiting.append(piece)
        return self._write()

    def sync(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            CheckpointError: It cannot be written.
        """
        if self._write():
            try:
                if self._file is not None:
                    os.fsync(self._file)
                if self._is_new:
                    sync_folder(self.path.parent)
                    self._is_new = False
                return
            except OSError as error:
                self.problem = error
        raise CheckpointError(
            f"{write_problem(self.path, self.problem)}; no checkpoint is made without its log, earlier ones are "
            f"whole; free space and go on with: detrkit resume {self.path.parent}"
        ) from self.problem

    def close(self) -> None:
        """Try once more to write what waits, and let go of the file."""
        self._write()
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None

    def _write(self) -> bool:
        """Write what waits, piece by piece."""
        try:
            if self._file is None:
                flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
                self._file = os.open(self.path, flags, 0o666)
            while self._waiting:
                self._write_piece(self._file, self._waiting[0])
                self.size += len(self._waiting.pop(0))
        except OSError as error:
            self.problem = error
            return False
        self.problem = None
        return True

    def _write_piece(self, file: int, piece: bytes) -> None:
        os.lseek(file, self.size, os.SEEK_SET)
        left = memoryview(piece)
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, self.size)
            raise


def cut(path: Path, size: int) -> None:
    """Make a file end after ``size`` bytes, durably.

    Raises:
        OSError: It cannot be cut.
    """
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def write_problem(path: Path, error: OSError | None) -> str:
    """What hinders writing, for people."""
    if error is not None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {path}"
    reason = "unknown" if error is None else error.strerror or error
    return f"cannot write {path}: {reason}"
