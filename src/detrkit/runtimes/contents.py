"""The files of a bundle, a folder or one ``.zip``, read by their names and nothing else."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

from detrkit.errors import BundleError

MANIFEST = "bundle.json"
MOST_MANIFEST = 64 << 20


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
        if self.path.is_dir():
            return
        try:
            self._zip = zipfile.ZipFile(self.path)
        except FileNotFoundError as error:
            raise BundleError(f"{self.path}: there is no such bundle; check the path") from error
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise BundleError(
                f"{self.path} is no bundle, or cut off: {error}; expected what detrkit export wrote"
            ) from error

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
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
            raise BundleError(f"{where} cannot be read: {error}; copy the bundle again") from error
        if len(content) > most:
            raise BundleError(f"{where} has more than {most:,} bytes, expected no more; copy the bundle again")
        return content

    def _read_member(self, name: str, most: int) -> bytes:
        assert self._zip is not None
        with self._zip.open(name) as file:
            return file.read(most + 1)

    def _read_file(self, name: str, most: int) -> bytes:
        file = self.path / name
        if not file.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(
                f"{self.path}: {name} is a link that leads outside of the bundle; put the file there"
            )
        with file.open("rb") as opened:
            return opened.read(most + 1)


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
