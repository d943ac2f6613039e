"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from detrkit.errors import UsageError


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made if it is not there; asked for before the work whose results it is to hold.

    Raises:
        UsageError: It is a file, or cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        is_file = folder.exists() and not folder.is_dir()
        reason = "it is a file" if is_file else error.strerror or error
        raise UsageError(f"{folder} cannot be used as a folder for results: {reason}; give another") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder} cannot be written: permission denied; give another folder for results")
    return folder


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[str]]:
    """Open a text file for writing that takes the place of ``path`` only when all of it is on the disk.

    The temporary file lies in the same folder: a rename across file systems is a copy, which can be cut off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
