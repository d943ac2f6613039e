"""The files of a bundle, a folder or one ``.zip``, read by their names and nothing else."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import IO

from detrkit.errors import BundleError, listed

MANIFEST = "bundle.json"
MOST_MANIFEST = 16 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of others, the decoder itself may take gigabytes


class Contents:
    """Files of a bundle by name, relative to it; nothing is unpacked, and nothing outside is ever opened.

    Args:
        path: Folder or zip file.

    Raises:
        BundleError: It is neither, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser()
        self._zip: zipfile.ZipFile | None = None
        try:
            kind = self.path.stat().st_mode
            if stat.S_ISDIR(kind):
                return
            if not stat.S_ISREG(kind):
                raise ValueError("neither a folder nor a file")
            self._zip = zipfile.ZipFile(self.path)
        except FileNotFoundError as error:
            raise BundleError(f"{self.path}: there is no such bundle; check the path") from error
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise BundleError(
                f"{self.path} is no bundle, or cut off: {error}; expected what detrkit export wrote"
            ) from error
        if twice := [name for name, times in Counter(self._zip.namelist()).items() if times > 1]:
            raise BundleError(
                f"{self.path} holds {listed(twice)} more than once, and which is meant cannot be known; "
                "export the model again"
            )

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a file.

        Args:
            name: As the bundle's manifest calls it.
            most: Bytes that it may have; more are not read.

        Raises:
            BundleError: The name leads outside, or the file is missing, larger, or damaged.
        """
        where = f"{self.path}: {name}"
        parts = name.split("/")
        if name != name.strip() or "\\" in name or ":" in name or {"", ".", ".."} & set(parts):
            raise BundleError(
                f"{self.path} names {name!r}, which may lie outside of it; no bundle of detrkit's does"
            )
        try:
            content = self._read_member(name, most) if self._zip else self._read_file(name, most)
        except (KeyError, FileNotFoundError, NotADirectoryError) as error:
            raise BundleError(f"{where} is missing; copy the bundle again") from error
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            raise BundleError(f"{where} cannot be read: {error}; copy the bundle again") from error
        return content

    def _read_member(self, name: str, most: int) -> bytes:
        assert self._zip is not None
        member = self._zip.getinfo(name)
        if member.compress_type not in _METHODS:
            raise ValueError(f"it is packed by method {member.compress_type}, expected stored or deflated")
        with self._zip.open(member) as file:
            return _read_at_most(file, member.file_size, most)

    def _read_file(self, name: str, most: int) -> bytes:
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(
                f"{self.path}: {name} is a link that leads outside of the bundle; put the file there"
            )
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise ValueError("it is no file")
        with path.open("rb") as file:
            return _read_at_most(file, found.st_size, most)


def _read_at_most(file: IO[bytes], size: int, most: int) -> bytes:
    """Read a file that says how large it is; what says less than it has is cut off there, which its hash tells.

    Raises:
        ValueError: It is larger than it may be.
    """
    if size > most:
        raise ValueError(f"it has {size:,} bytes, expected at most {most:,}")
    return file.read(size)


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a bundle by its looks: a folder with a manifest, or a zip file with one."""
    path = Path(path).expanduser()
    if path.is_dir():
        return (path / MANIFEST).is_file()
    if path.suffix == ".zip":
        return path.is_file()
    try:
        with zipfile.ZipFile(path) as opened:
            return MANIFEST in opened.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
