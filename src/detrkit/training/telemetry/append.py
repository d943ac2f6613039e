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
    piece; the file itself never ends in half a piece.

    Args:
        path: file path; made if it is not there, otherwise what is there stays.
    """

    def __init__(self, path: Path):
        self.path = path
        self.problem: OSError | None = None
        self._file: int | None = None
        self._waiting: list[bytes] = []
        self._size = path.stat().st_size if path.exists() else 0
        self._write()

    def append(self, piece: bytes) -> bool:
        """Add a piece; return False if it has to wait, for the reason in ``problem``."""
        self._waiting.append(piece)
        return self._write()

    def sync(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            CheckpointError: The file cannot be written.
        """
        if self._write() and self._file is not None:
            try:
                os.fsync(self._file)
                sync_folder(self.path.parent)
                return
            except OSError as error:
                self.problem = error
        raise no_checkpoint(self.path, self.problem)

    def close(self) -> None:
        """Try once more to write what waits, and close the file."""
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
                self._size += len(self._waiting.pop(0))
        except OSError as error:
            self.problem = error
            return False
        self.problem = None
        return True

    def _write_piece(self, file: int, piece: bytes) -> None:
        os.lseek(file, self._size, os.SEEK_SET)
        left = memoryview(piece)
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, self._size)
            raise


def cut_lines(path: Path, count: int) -> int:
    """Cut a file after its first ``count`` whole lines, durably; return how many there are now."""
    if not path.exists():
        return 0
    kept, size = 0, 0
    with path.open("r+b") as file:
        for line in file:
            if kept == count or not line.endswith(b"\n"):
                break
            kept += 1
            size += len(line)
        file.truncate(size)
        os.fsync(file.fileno())
    return kept


def write_problem(path: Path, error: OSError | None) -> str:
    """Say why a file cannot be written."""
    if error is not None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {path}"
    return f"cannot write {path}: {'unknown' if error is None else error.strerror or error}"


def no_checkpoint(path: Path, problem: OSError | None) -> CheckpointError:
    """Return the error of a checkpoint whose log cannot be written."""
    error = CheckpointError(
        f"{write_problem(path, problem)}; no checkpoint is made without its log, earlier ones are whole; free "
        f"space and go on with: detrkit resume {path.parent}"
    )
    error.__cause__ = problem
    return error
