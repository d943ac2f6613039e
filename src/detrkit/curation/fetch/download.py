"""Fetching one file: gone on with after a kill, checked, and under its name only when it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from detrkit.curation.fetch.entry import Archive, size_text
from detrkit.curation.fetch.pieces import ChangedError, Report, State, Talk, fetch_bytes
from detrkit.curation.fetch.web import Policy
from detrkit.errors import DataError

STARTS = 3
"""How often a file is begun anew when it changes at its address meanwhile, or what was kept of it is damaged."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class Digests:
    """Hashes and size of a file; the MD5 only where one is published, as it takes as long again."""

    sha256: str
    md5: str | None
    size: int


def download(archive: Archive, path: Path, *, connections: int, policy: Policy, talk: Talk) -> Digests:
    """Fetch a file; it gets its name only when it is whole, its hashes are right and it is on the disk.

    While it is fetched, ``<name>.part`` holds the data and ``<name>.part.json`` what of it is done, so that a run
    killed at any moment is gone on with.

    Raises:
        DataError: The server cannot be reached or refuses, a hash is wrong, or the disk is full.
    """
    partial, state = _partial_files(path)
    for _start in range(1, STARTS + 1):
        resumed = kept_bytes(path) > 0
        try:
            with disk_errors(path):
                fetch_bytes(archive, partial, state, connections, policy, talk)
                digests = hash_file(partial, archive, talk.report)
            wrong = mismatch(archive, digests)
        except ChangedError as change:
            wrong, again = str(change), True
        else:
            again = resumed  # what an earlier run left behind may be what is damaged
        if wrong is None:
            with disk_errors(path):
                _finish(partial, path)
            state.unlink(missing_ok=True)
            return digests
        for file in (partial, state):
            file.unlink(missing_ok=True)
        if not again:
            break
        talk.say(f"{path.name}: {wrong}; starting over")
    raise DataError(
        f"{archive.url}: {wrong}. Nothing of it was kept. Try again; if it happens again, the file at this "
        "address is no longer the published one"
    )


def kept_bytes(path: Path) -> int:
    """How much of an unfinished download is on the disk and done."""
    partial, state_path = _partial_files(path)
    state = State.read(state_path) if partial.exists() else None
    return sum(state.done) if state else 0


def hash_file(path: Path, archive: Archive, report: Report) -> Digests:
    """What an archive is to be checked by, of the file at a path."""
    sha256 = hashlib.sha256()
    md5 = hashlib.md5(usedforsecurity=False) if archive.md5 else None
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
            if md5 is not None:
                md5.update(block)
            done += len(block)
            report(f"checking {archive.file_name}", done, total)
    return Digests(sha256.hexdigest(), md5.hexdigest() if md5 else None, done)


def mismatch(archive: Archive, digests: Digests) -> str | None:
    """What is not as published, in words; None if nothing."""
    if archive.size is not None and digests.size != archive.size:
        return f"it has {digests.size:,} bytes, expected {archive.size:,}"
    if archive.sha256 is not None and digests.sha256 != archive.sha256.lower():
        return f"its SHA-256 is {digests.sha256}, expected {archive.sha256}"
    if archive.md5 is not None and digests.md5 != archive.md5.lower():
        return f"its MD5 is {digests.md5}, expected {archive.md5}"
    return None


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say what to do about a full disk.

    Raises:
        DataError: There was no space left.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(path.parent).free
        raise DataError(
            f"{path.parent}: no space left while writing {path.name} ({error.strerror}; {size_text(free)} "
            "free). What was fetched is kept: free some space and run the same command again"
        ) from error


def _partial_files(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")


def _finish(partial: Path, path: Path) -> None:
    """Give the file its name after its bytes are on the disk, and put the name there too."""
    with partial.open("r+b") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system lets one ask for that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
