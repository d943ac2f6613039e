"""What describes every layout: the files of a split, and the names that people give to both."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from detrkit.classes import SizeHW
from detrkit.errors import AnnotationError

SPLIT_ALIASES = {  # CVAT calls its only split default
    "train": ("train", "training", "default"),
    "val": ("val", "valid", "validation", "validate"),
    "test": ("test", "testing"),
}
COMBINED_SPLITS = {"trainval": ("train", "val"), "all": ("train",)}
"""Splits that repeat the images of others; they can be asked for by name, but are no further splits."""
IMAGE_FOLDERS = ("images", "JPEGImages", "imgs", "img", "data")
PANOPTIC_FILE = re.compile(r"^panoptic_([A-Za-z]+?)(?:20\d\d)?(?:[_-].*)?$")
"""Name, without its suffix, of a COCO panoptic file; the group is its split."""


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """Where one split of a data set lies.

    Args:
        annotations: COCO JSON file; data.yaml or the folder of labels (YOLO), folder of XML files (Pascal VOC).
        images: Folder that its file names are relative to.
        layout: Name of the layout, for printing.
        reason: Why this was chosen, in words.
        format: name of the format that reads it, a key of :data:`detrkit.data.formats.FORMATS`
        listings: What lists the images of this split, where the annotations do not: YOLO's image folders or text
            files, Pascal VOC's ImageSets file; for COCO panoptic the folder of PNG files.
        names: File that holds the class names, where they are neither in the annotations nor in data.yaml.
        label_folders: Folders with the label files of every split, from which classes are gathered that no file
            names.
    """

    annotations: Path
    images: Path
    layout: str
    reason: str
    format: str = "coco"
    listings: tuple[Path, ...] = ()
    names: Path | None = None
    label_folders: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class SplitCandidate:
    """A split that a layout has.

    Args:
        evidence: The file or folder that shows it.
        files: Gives the whole description; called for the split that is asked for only, since it may have to
            look into large files.
    """

    evidence: Path
    files: Callable[[], SplitFiles]


SplitCandidates = dict[str, SplitCandidate]
"""Splits that a way of looking found, by canonical name."""


def described(evidence: Path, files: SplitFiles) -> SplitCandidate:
    """Return a candidate whose description is known already."""
    return SplitCandidate(evidence, lambda: files)


def canonical_split(name: str) -> str:
    """Return one spelling for a split: valid, validation and val are val."""
    lowered = name.lower()
    return next((split for split, aliases in SPLIT_ALIASES.items() if lowered in aliases), lowered)


def split_of_folder(name: str) -> str | None:
    """Return the split of a folder called so: train for ``Train``, val for ``val2017``; None for other names."""
    split = canonical_split(re.sub(r"[_-]?20\d\d$", "", name))
    return split if split in SPLIT_ALIASES else None


def usable_size(height: float, width: float) -> SizeHW:
    """Return a size as whole pixels; 0, 0 where it is none."""
    usable = 1 <= height < 2**31 and 1 <= width < 2**31
    return (int(height), int(width)) if usable else (0, 0)


def read_text(path: Path, errors: str = "replace") -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        AnnotationError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors=errors)
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}; check the path") from error


def subfolders(folder: Path) -> list[Path]:
    """List the folders inside a folder, by name, hidden ones left out."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    return [folder / name for name in names]


def child(folder: Path, *names: str) -> Path | None:
    """Find the first folder inside a folder with one of the names, whatever its capitals."""
    by_name = {path.name.lower(): path for path in subfolders(folder)}
    return next((by_name[name.lower()] for name in names if name.lower() in by_name), None)


def holds(folder: Path, *suffixes: str) -> bool:
    """Return whether a folder directly holds a file with one of the suffixes."""
    try:
        with os.scandir(folder) as entries:
            return any(is_kind(entry.name, suffixes) and entry.is_file() for entry in entries)
    except OSError:
        return False


def walk_files(folder: Path, *suffixes: str) -> Iterator[str]:
    """Yield files below a folder with one of the suffixes, as ``/``-separated names relative to it, in order."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = "" if Path(where) == folder else Path(where).relative_to(folder).as_posix() + "/"
        yield from (prefix + name for name in sorted(files) if is_kind(name, suffixes))


def is_kind(name: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether a name ends in one of the suffixes and is not of a hidden file, as macOS's ``._1.jpg``."""
    return not name.startswith(".") and name[name.rfind(".") :].lower() in suffixes if "." in name else False


def relative(path: Path, root: Path) -> str:
    """Return a path as said to people: relative to the data set where it lies in it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
