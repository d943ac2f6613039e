"""Copies of the training images at the size that training needs, kept on disk by ``detrkit data cache``.

A copy is worth reading only while it is of the file that lies in the image folder now, so a cache notes the size
and the time of change of every source; an image whose source has changed since is read from its source.

Shapes: I images of the data set, M of the cache.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrkit.classes import SizeHW
from detrkit.config import DataConfig
from detrkit.data.formats import canonical_split
from detrkit.data.index import CocoIndex, check_inside
from detrkit.errors import AnnotationError, DataError
from detrkit.ops.images import DecodeTarget

VERSION = 1
_NPZ_ERRORS = (OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_COPY_SUFFIXES = (".jpg", ".jpeg")


class Entry(NamedTuple):
    """What a cache knows of one image: its source, the size of that once upright, and the copy.

    A linked copy is the source byte for byte, under its name.
    """

    source_bytes: int
    source_mtime_ns: int
    height: int
    width: int
    copy_bytes: int
    is_linked: bool


@dataclasses.dataclass(frozen=True)
class CacheSettings:
    """What the copies of a cache are like.

    Args:
        short: Greatest short side of a copy in pixels.
        quality: Of the JPEG, 1 to 100.
        source: Image folder that was copied, resolved.
    """

    short: int
    quality: int
    source: str


@dataclasses.dataclass(frozen=True)
class ImageCache:
    """The copies that a data set may read in place of its images.

    Args:
        folder: The cache.
        images: Folder of the copies.
        sizes_hw: Size of each source, upright, int32 ``[I, 2]``; 0 where there is no good copy.
        is_linked: bool ``[I]``, whether the copy has the name of the source.
        short: Greatest short side of a copy.
    """

    folder: Path
    images: Path
    sizes_hw: np.ndarray
    is_linked: np.ndarray
    short: int

    def copy_of(self, row: int, name: str) -> Path | None:
        """Return the copy of an image, given its name in the data set; None if there is no good one."""
        if not self.sizes_hw[row, 0]:
            return None
        path = copy_name(name, bool(self.is_linked[row]))
        try:
            check_inside(path, self.images, links=False)
        except AnnotationError:
            return None
        return self.images / path

    def size_hw(self, row: int) -> SizeHW:
        """Return the size of the source of an image that has a copy."""
        return int(self.sizes_hw[row, 0]), int(self.sizes_hw[row, 1])

    def __len__(self) -> int:
        return int(np.count_nonzero(self.sizes_hw[:, 0]))


def default_cache_folder(data: str | os.PathLike[str]) -> Path:
    """Return where the cache of a data set is kept if nobody says: beside its folder."""
    path = Path(data).expanduser().resolve()
    folder = path.parent if path.is_file() else path
    return folder.with_name(f"{folder.name}-cache")


def find_cache(
    config: DataConfig, split: str, index: CocoIndex, images: Path, needed: DecodeTarget
) -> tuple[ImageCache | None, list[str]]:
    """Find the cache that a config wants or, if it leaves that open, one that fits.

    Args:
        config: Its ``cache`` is a folder, none, or auto: a cache beside ``root`` that is large enough.
        split: Name of the split.
        index: Its images.
        images: Its image folder.
        needed: What training asks for.

    Returns:
        The cache, and lines for people.

    Raises:
        DataError: The folder that is named holds no cache of these images.
    """
    if config.cache == "none" or (config.cache == "auto" and config.root is None):
        return None, []
    if config.pixel_range != "full":
        return None, ["cache not used: its copies are of data.pixel_range=full"] if config.cache != "auto" else []
    named = config.cache != "auto"
    folder = Path(config.cache).expanduser() if named else default_cache_folder(config.root or ".")
    if not named and not manifest_path(folder, split).is_file():
        return None, []
    try:
        settings, entries = read_manifest(folder, split)
    except DataError:
        if named:
            raise
        return None, []
    if settings.source != os.path.realpath(images):
        if named:
            raise DataError(
                f"{folder} is a cache of {settings.source}, and the images of {split} are in "
                f"{os.path.realpath(images)}; make one of them with: detrkit data cache, or set data.cache=none"
            )
        return None, []
    if settings.short < max(needed.short, needed.least):
        small = f"{folder}: its images have a short side of {settings.short} pixels, training asks for up to "
        small += f"{max(needed.short, needed.least)}"
        if not named:
            return None, [f"cache not used: {small}"]
        lines = [f"WARNING: {small}; the larger scales are enlarged and show no more detail"]
    else:
        lines = []
    cache = match(folder, split, settings, entries, index)
    lines.append(f"images of {split} come from the cache {folder}: {len(cache)} of {len(index)}")
    if len(cache) < len(index):
        lines[-1] += "; the others are new or have changed, and are read themselves until: detrkit data cache"
    return cache, lines


def match(
    folder: Path, split: str, settings: CacheSettings, entries: Mapping[str, Entry], index: CocoIndex
) -> ImageCache:
    """Match the copies whose sources are still the same to the images of an index."""
    sizes_hw = np.zeros((len(index), 2), dtype=np.int32)
    is_linked = np.zeros(len(index), dtype=bool)
    for row in range(len(index)):
        name = index.file_name(row)
        entry = entries.get(name)
        if entry is not None and is_current(entry, Path(settings.source) / name):
            sizes_hw[row] = entry.height, entry.width
            is_linked[row] = entry.is_linked
    return ImageCache(folder.resolve(), copies_folder(folder, split), sizes_hw, is_linked, settings.short)


def is_current(entry: Entry, source: Path) -> bool:
    """Return whether a source has not changed since it was copied."""
    try:
        status = source.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (entry.source_bytes, entry.source_mtime_ns)


def copy_name(name: str, is_linked: bool) -> str:
    """Return the name of a copy, relative to its folder; one that was encoded anew is a JPEG and is called so."""
    return name if is_linked or name.lower().endswith(_COPY_SUFFIXES) else f"{name}.jpg"


def copies_folder(folder: Path, split: str) -> Path:
    """Return the folder of the copies of a split."""
    return folder / canonical_split(split)


def manifest_path(folder: Path, split: str) -> Path:
    """Return the path of the list of the copies of a split."""
    return folder / f"{canonical_split(split)}.manifest.npz"


def read_manifest(folder: Path, split: str) -> tuple[CacheSettings, dict[str, Entry]]:
    """Read the settings and copies of a cache.

    Raises:
        DataError: There is none, or it is damaged.
    """
    path = manifest_path(folder, split)
    advice = "make it with: detrkit data cache DATA --out DIR, or set data.cache=none"
    if not path.is_file():
        raise DataError(f"{folder} holds no image cache of {split}: there is no {path.name}; {advice}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            version, short, quality = (int(value) for value in content["settings"])
            source = os.fsdecode(content["source"].tobytes())
            packed, offsets, rows = content["name_bytes"].tobytes(), content["name_offsets"], content["entries"]
            names = [
                packed[start:stop].decode("utf-8", "surrogateescape")
                for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
            ]
            entries = {
                name: Entry._make([*row[:-1], bool(row[-1])])
                for name, row in zip(names, rows.tolist(), strict=True)
            }
    except _NPZ_ERRORS as error:
        raise DataError(f"{path} is damaged: {error}; remove {folder} and {advice}") from error
    if version != VERSION:
        raise DataError(f"{path} has version {version}, expected {VERSION}; remove {folder} and {advice}")
    return CacheSettings(short, quality, source), entries
