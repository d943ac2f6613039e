"""The folder that a data set is written to: whole or not there, and nothing outside it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import itertools
import os
import posixpath
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from detrkit.data.formats.base import is_kind
from detrkit.data.index import CocoIndex, check_inside
from detrkit.errors import DataError, UsageError
from detrkit.files import IMAGE_SUFFIXES

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""

RESERVED_SPLITS = frozenset({"all", "annotations", "images", "imagesets", "jpegimages", "labels"})
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS})


def check_new_folder(out: Path) -> None:
    """Refuse a folder that cannot be written to; asked for before minutes of work, too.

    Raises:
        UsageError: It is a file, or holds something already.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, expected a folder to write to; give another")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; give a new folder, so that nothing is lost or mixed")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Make a folder to fill, which becomes ``out`` only when all of it is there.

    Raises:
        UsageError: ``out`` is a file, holds something already, or cannot be made.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link that is to be replaced
    check_new_folder(out)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{out.parent}: cannot make a folder in it: {reason}; give another") from error
    try:
        yield temporary
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_split_names(names: list[str]) -> None:
    """Refuse names of splits that could not be read back, or that lead out of a folder.

    Raises:
        UsageError: One is no plain word, or is the name of another folder of the layout.
    """
    for name in names:
        if not re.fullmatch("[A-Za-z]+", name) or name.lower() in RESERVED_SPLITS:
            raise UsageError(
                f"{name!r} cannot be the name of a split; expected letters, such as train, val or test"
            )
    if not names:
        raise UsageError("no split to write; name at least one")


def inside_name(name: str) -> str:
    """Return a file name of an image without ``.`` and ``..``, to be joined to a new folder.

    Raises:
        DataError: It is absolute or leads out of the folder.
    """
    plain = posixpath.normpath(name)
    if posixpath.isabs(plain) or plain in (".", "..") or plain.startswith("../") or "\0" in name:
        raise DataError(f"file name {name!r} leads out of its folder; correct the annotation file")
    return plain


Splits = Mapping[str, tuple[CocoIndex, Path]]
"""Index and image folder of each split, by name."""


@dataclasses.dataclass(frozen=True)
class WriteOptions:
    """How a data set is written.

    Args:
        copy: copy the images; otherwise they are hard-linked where the file system can
        progress: called with images placed and images in all
        sources: COCO JSON file that a split was read from, whose further fields COCO keeps, such as masks
        decimals: write fractions of pixels, for Pascal VOC
        polygons: write polygons instead of boxes, for YOLO
        panoptic: COCO panoptic JSON file that a split was read from and the folder of its PNG files, both kept
        left_out: filled by the writer with the objects of each split that it could not write, by kind of fault and
            name of their class
    """

    copy: bool = False
    progress: Progress | None = None
    sources: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    decimals: bool = False
    polygons: bool = False
    panoptic: Mapping[str, tuple[Path, Path]] = dataclasses.field(default_factory=dict)
    left_out: dict[str, Counter[tuple[str, str]]] = dataclasses.field(default_factory=dict)


DEFAULTS = WriteOptions()


def common_classes(splits: Splits) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the class names of all splits, and the number of each split's classes among them, int64.

    Formats with one list of classes need it; annotation files of different splits may list different ones. A name
    that a split has twice stays twice.
    """
    numbers: dict[tuple[str, int], int] = {}
    found: dict[str, np.ndarray] = {}
    for split, (index, _) in splits.items():
        seen: Counter[str] = Counter()
        own = []
        for name in index.class_map.names:
            own.append(numbers.setdefault((name, seen[name]), len(numbers)))
            seen[name] += 1
        found[split] = np.array(own, dtype=np.int64)
    return [name for name, _ in numbers], found


def distinct_names(index: CocoIndex, images: Path) -> dict[str, str]:
    """Choose names of images, such that no two differ only in their suffix, where formats put labels beside them.

    Names whose suffix is not that of an image get the suffix of its true format.

    Args:
        index: images, named relative to a folder
        images: the folder

    Returns:
        The name to use of each.
    """
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in map(index.file_name, range(len(index))):
        plain = re.sub(r"[\r\n]", "_", inside_name(name))
        if not is_kind(name.rpartition("/")[2], IMAGE_SUFFIXES):
            plain += _true_suffix(images / name)
        stem, dot, suffix = plain.rpartition(".")
        candidates = itertools.chain(
            [stem, f"{stem}_{suffix.lower()}"], (f"{stem}_{number}" for number in itertools.count(2))
        )
        if name not in chosen:
            free = next(candidate for candidate in candidates if candidate not in taken)
            taken.add(free)
            chosen[name] = f"{free}{dot}{suffix}"
    return chosen


def renamed_note(split: str, renames: Mapping[str, str], why: str) -> list[str]:
    """Say which images of a split were given another name; nothing where none was."""
    changed = [f"{new} for {old}" for old, new in renames.items() if inside_name(old) != new]
    return [f"{split}: {len(changed)} images have a new name, such as {changed[0]}: {why}"] if changed else []


def _true_suffix(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return f".{(image.format or 'jpg').lower()}"
    except (OSError, ValueError, SyntaxError):
        return ".jpg"


def place_image(source: Path, target: Path, *, copy: bool) -> None:
    """Put an image file where a data set wants it: a hard link where the file system has one, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    original = os.path.realpath(source)
    if not copy:
        try:
            os.link(original, target)
        except FileExistsError:
            return  # listed twice
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        else:
            return
    shutil.copyfile(original, target)


def place_images(
    index: CocoIndex,
    images: Path,
    folder: Path,
    *,
    copy: bool,
    rename: Callable[[str], str] = inside_name,
    progress: Callable[[], None] | None = None,
) -> list[str]:
    """Put every image of a split below ``folder``; return their names there, in order.

    Args:
        index: images of the split
        images: folder that its file names are relative to
        folder: target folder
        copy: copy the bytes instead of linking
        rename: new name of an image by its old one
        progress: called after each image
    """
    names: list[str] = []
    for row in range(len(index)):
        listed = index.file_name(row)
        check_inside(listed, images)
        name = rename(listed)
        place_image(images / listed, folder / name, copy=copy)
        names.append(name)
        if progress is not None:
            progress()
    return names


@contextlib.contextmanager
def new_data_set(
    out: Path, splits: Splits, options: WriteOptions
) -> Iterator[tuple[Path, Callable[..., list[str]]]]:
    """Give a folder to fill, which becomes ``out`` only when all of it is there, and :func:`place_images` for it.

    Raises:
        UsageError: ``out`` is not empty, or a split has an impossible name.
    """
    check_split_names(list(splits))
    numbers, total = itertools.count(1), sum(len(index) for index, _ in splits.values())

    def count() -> None:
        if options.progress is not None:
            options.progress(next(numbers), total)

    with new_folder(out) as folder:
        yield folder, functools.partial(place_images, copy=options.copy, progress=count)
