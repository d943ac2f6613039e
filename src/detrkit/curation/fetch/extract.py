"""Unpacking archives that nobody vouches for: nothing leaves the folder, no links, no floods."""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from detrkit.curation.fetch.entry import size_text
from detrkit.curation.fetch.pieces import Report, need_space
from detrkit.errors import DataError

_BLOCK = 2**20
_LONGEST_PART = 255
_DRIVE = re.compile(r"^[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # the last: bytes that are no text
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much an archive may hold; far above any real data set, far below what fills a machine.

    Args:
        files: Number of files.
        bytes: Bytes once unpacked.
        ratio: Bytes once unpacked for a byte of the archive.
        free_bytes: Archives that unpack to less than this are not judged by the ratio.
    """

    files: int = 1_000_000
    bytes: int = 200 * 2**30
    ratio: int = 100
    free_bytes: int = 64 * 2**20


def unpack(archive: Path, folder: Path, limits: Limits, report: Report) -> None:
    """Unpack a zip or tar file into a new folder; a killed or refused one leaves only that folder behind.

    Everything that is listed is looked at before anything is written, as far as the kind of archive allows.

    Raises:
        DataError: It is no archive, is damaged, or holds what no data set needs: links, devices, paths that
            lead outside, the same path twice, more or larger files than the limits.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    with _damage(archive):
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder, limits, report)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder, limits, report)
        else:
            raise DataError(f"{archive.name} is neither a zip nor a tar file, or is cut off")


def commit_of(archive: Path) -> str | None:
    """The commit that GitHub says a zip file is of; None for any other file."""
    if not zipfile.is_zipfile(archive):
        return None
    with zipfile.ZipFile(archive) as file:
        comment = file.comment.decode("ascii", "replace")
    return comment if _COMMIT.fullmatch(comment) else None


class _Ledger:
    """Counts what an archive holds and refuses what goes over the limits or occurs twice."""

    def __init__(self, archive: Path, limits: Limits):
        self.archive, self.limits = archive, limits
        self.size = archive.stat().st_size
        self.files: set[PurePosixPath] = set()
        self.folders: set[PurePosixPath] = set()
        self.bytes = 0

    def path(self, name: str) -> PurePosixPath:
        """The path of a member inside the folder.

        Raises:
            DataError: It could lead outside, or cannot be a path.
        """
        text = name.replace("\\", "/")
        path = PurePosixPath(text)
        reason = None
        if path.is_absolute() or _DRIVE.match(text):
            reason = "is absolute"
        elif ".." in path.parts:
            reason = "leads outside"
        elif _CONTROL.search(text):
            reason = "holds control characters"
        elif any(len(part.encode("utf-8")) > _LONGEST_PART for part in path.parts):
            reason = "is too long"
        if reason:
            raise self.refusal(f"the path {name[:200]!r} {reason}")
        return path

    def add(self, name: str, size: int, *, is_folder: bool) -> PurePosixPath | None:
        """Count a member; None if there is nothing to write: a folder, or what a file browser left behind."""
        path = self.path(name)
        if is_folder or not path.parts:
            self.folders.add(path)
            return None
        if size < 0:
            raise self.refusal(f"{name[:200]!r} has size {size}")
        self.bytes += size
        if path in self.files:
            raise self.refusal(f"it holds {name[:200]!r} twice")
        self.files.add(path)
        self.folders.update(path.parents)
        self._check_limits()
        return None if _is_junk(path) else path

    def close(self) -> None:
        """Refuse a path that is both a file and a folder."""
        both = self.files & self.folders
        if both:
            raise self.refusal(f"{str(min(both))!r} is both a file and a folder")

    def refusal(self, reason: str) -> DataError:
        """An error that says why nothing of this archive is used."""
        return DataError(f"{self.archive.name} is not unpacked: {reason}")

    def _check_limits(self) -> None:
        limits = self.limits
        if len(self.files) > limits.files:
            raise self.refusal(f"it holds more than {limits.files:,} files")
        if self.bytes > limits.bytes:
            raise self.refusal(f"it unpacks to more than {size_text(limits.bytes)}")
        if self.bytes > max(limits.free_bytes, limits.ratio * self.size):
            raise self.refusal(f"it unpacks to more than {limits.ratio} times its own size")


def _unpack_zip(archive: Path, folder: Path, limits: Limits, report: Report) -> None:
    ledger = _Ledger(archive, limits)
    with zipfile.ZipFile(archive) as file:
        members: list[tuple[zipfile.ZipInfo, PurePosixPath]] = []
        for info in file.infolist():
            mode = info.external_attr >> 16
            # Zip files made on Windows have no mode: 0 in the place of the kind of file.
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ledger.refusal(f"{info.filename[:200]!r} is a link or a device")
            if info.flag_bits & 1:
                raise ledger.refusal(f"{info.filename[:200]!r} is encrypted")
            path = ledger.add(info.filename, info.file_size, is_folder=info.is_dir())
            if path is not None:
                members.append((info, path))
        ledger.close()
        need_space(folder, ledger.bytes)
        done = 0
        for info, path in members:
            with file.open(info) as source:
                _write(source, folder / path, info.file_size, ledger)
            done += info.file_size
            report(f"unpacking {archive.name}", done, ledger.bytes)


def _unpack_tar(archive: Path, folder: Path, limits: Limits, report: Report) -> None:
    ledger = _Ledger(archive, limits)
    # A compressed tar is one stream: members are known only while it is unpacked, so each is judged on its own.
    with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as file:
        for member in file:
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise ledger.refusal(f"{member.name[:200]!r} is a link or a device")
            path = ledger.add(member.name, member.size, is_folder=member.isdir())
            if path is None:
                continue
            tarfile.data_filter(member, str(folder))  # a second opinion; it raises on what it would not unpack
            source = file.extractfile(member)
            assert source is not None
            with source:
                _write(source, folder / path, member.size, ledger)
            report(f"unpacking {archive.name}", min(raw.tell(), ledger.size), ledger.size)
    ledger.close()


def _write(source: IO[bytes], target: Path, size: int, ledger: _Ledger) -> None:
    """Write a member to a file that is not there yet, and not a byte more than it is listed with."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            left = size
            while block := source.read(min(_BLOCK, left + 1)):
                left -= len(block)
                if left < 0:
                    raise ledger.refusal(f"{target.name!r} is larger than it is listed with")
                file.write(block)
    except (FileExistsError, NotADirectoryError) as error:  # names that differ only in case, on some disks
        raise ledger.refusal(f"{target.name!r} is there twice") from error
    if left:
        raise ledger.refusal(f"{target.name!r} is cut off")


def _is_junk(path: PurePosixPath) -> bool:
    """What file browsers of macOS and Windows leave in archives."""
    return "__MACOSX" in path.parts or path.name.startswith("._") or path.name in (".DS_Store", "Thumbs.db")


@contextlib.contextmanager
def _damage(archive: Path) -> Iterator[None]:
    """Say of every way in which an archive can be broken that it is broken."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
    ) as error:
        raise DataError(f"{archive.name} is damaged or cut off: {error}") from error
