"""Unpacking archives that nobody vouches for: nothing leaves the folder, no links, no floods."""

from __future__ import annotations

import functools
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from detrkit.download import Report, need_space, size_text
from detrkit.errors import DataError

# Far above any real data set, far below what fills a machine.
MAX_FILES = 1_000_000
MAX_BYTES = 200 * 2**30
MAX_RATIO = 100
"""Bytes once unpacked for a byte of the archive."""
NO_RATIO_BYTES = 64 * 2**20
"""Archives that unpack to less than this are not judged by the ratio."""

_JUNK = {"__MACOSX", ".DS_Store", "Thumbs.db"}
_DRIVE = re.compile(r"^[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # the last: bytes that are no text
_COMMIT = re.compile(r"[0-9a-f]{40}")

# The last: an encrypted zip file, or a kind of compression that is not known.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


class _Member(NamedTuple):
    """One file of an archive: name, bytes as listed, and how to open it; None for a link or a device."""

    name: str
    size: int
    open: Callable[[], IO[bytes]] | None


def unpack(archive: Path, folder: Path, report: Report) -> None:
    """Unpack a zip or tar file into a new folder; a killed or refused one leaves only that folder behind.

    Raises:
        DataError: It is no archive, is damaged, or holds what no data set needs: links, devices, paths that
            lead outside, the same path twice, more or larger files than the limits.
        DownloadError: The disk cannot hold it.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                total = sum(info.file_size for info in zipped.infolist())
                _check_limits(archive, len(zipped.infolist()), total)
                need_space(folder, total)
                _write_members(archive, _zip_members(zipped), folder, total, report)
        elif tarfile.is_tarfile(archive):
            # A compressed tar is one stream: its members are known only while it is unpacked.
            with tarfile.open(archive, "r:*") as tarred:
                _write_members(archive, _tar_members(tarred, folder), folder, None, report)
        else:
            raise DataError(f"{archive.name} is neither a zip nor a tar file, or is cut off")
    except _DAMAGE as error:
        raise DataError(f"{archive.name} is damaged, encrypted or cut off: {error}") from error


def commit_of(archive: Path) -> str:
    """Return the commit that GitHub says a zip file is of; empty for any other file."""
    if not zipfile.is_zipfile(archive):
        return ""
    with zipfile.ZipFile(archive) as file:
        comment = file.comment.decode("ascii", "replace")
    return comment if _COMMIT.fullmatch(comment) else ""


def _zip_members(zipped: zipfile.ZipFile) -> Iterator[_Member]:
    for info in zipped.infolist():
        # Zip files made on Windows have no mode: 0 in the place of the kind of file.
        is_plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
        if not info.is_dir():
            yield _Member(
                info.filename, info.file_size, functools.partial(zipped.open, info) if is_plain else None
            )


def _tar_members(tarred: tarfile.TarFile, folder: Path) -> Iterator[_Member]:
    for info in tarred:

        def opened(info: tarfile.TarInfo = info) -> IO[bytes]:
            # The standard library's opinion too: it raises on what it would not unpack.
            file = tarred.extractfile(tarfile.data_filter(info, str(folder)))
            assert file is not None
            return file

        if not info.isdir():
            yield _Member(info.name, info.size, opened if info.isreg() and not info.issparse() else None)


def _write_members(
    archive: Path, members: Iterator[_Member], folder: Path, total: int | None, report: Report
) -> None:
    done = 0
    for count, member in enumerate(members, start=1):
        path = _safe_path(archive, member.name)
        if member.open is None:
            raise _refusal(archive, f"{member.name[:200]!r} is a link or a device")
        done += member.size
        _check_limits(archive, count, done)
        # what file browsers of macOS and Windows leave in archives
        if path.name.startswith("._") or not _JUNK.isdisjoint(path.parts):
            continue
        target = folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, 2**20)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise _refusal(archive, f"it holds {member.name[:200]!r} twice, or as a file and a folder") from error
        if target.stat().st_size != member.size:
            raise _refusal(archive, f"{member.name[:200]!r} is cut off")
        report(f"unpacking {archive.name}", done, total)


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    """Return the path of a member inside the folder.

    Raises:
        DataError: It could lead outside, or cannot be a path.
    """
    text = name.replace("\\", "/")
    path = PurePosixPath(text)
    reason = None
    if path.is_absolute() or _DRIVE.match(text):
        reason = "is absolute"
    elif ".." in path.parts or not path.parts:
        reason = "leads outside"
    elif _CONTROL.search(text):
        reason = "holds control characters"
    if reason:
        raise _refusal(archive, f"the path {name[:200]!r} {reason}")
    return path


def _check_limits(archive: Path, files: int, unpacked: int) -> None:
    if files > MAX_FILES:
        raise _refusal(archive, f"it holds more than {MAX_FILES:,} files")
    if unpacked > MAX_BYTES:
        raise _refusal(archive, f"it unpacks to more than {size_text(MAX_BYTES)}")
    if unpacked > max(NO_RATIO_BYTES, MAX_RATIO * archive.stat().st_size):
        raise _refusal(archive, f"it unpacks to more than {MAX_RATIO} times its own size")


def _refusal(archive: Path, reason: str) -> DataError:
    return DataError(f"{archive.name} is not unpacked: {reason}")
