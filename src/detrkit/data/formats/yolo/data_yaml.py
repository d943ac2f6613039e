"""The ``data.yaml`` of YOLO sets: class names, and where it says that the splits lie.

What it says is often wrong by a prefix: Roboflow writes ``../train/images`` for ``train/images``, and archives are
unpacked into folders of another name. Such paths are looked for inside the data set by their last parts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from detrkit.data.faults import Findings
from detrkit.data.formats.base import SPLIT_ALIASES, canonical_split, is_kind, read_text, relative, walk_files
from detrkit.errors import AnnotationError, DataError
from detrkit.files import IMAGE_SUFFIXES

_FIRST = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_SPLIT_KEYS = frozenset(itertools.chain.from_iterable(SPLIT_ALIASES.values()))


@dataclasses.dataclass(frozen=True)
class DataYaml:
    """A ``data.yaml`` as it is written; all scalars are text.

    Args:
        path: The file.
        base: What it says under ``path``.
        splits: Folders or lists of each split, by canonical name.
        keys: The key of each split as it is spelled.
        names: Class names by class number; None if it has none.
        count: What it says under ``nc``.
        keypoint_values: Numbers that follow the box of each object in pose sets; 0 otherwise.
    """

    path: Path
    base: str
    splits: dict[str, tuple[str, ...]]
    keys: dict[str, str]
    names: dict[int, str] | None
    count: int | None
    keypoint_values: int


def find_data_yaml(root: Path) -> Path | None:
    """Find the file in a folder that describes a YOLO set; None if there is none.

    Raises:
        DataError: Several could be it.
    """
    for name in _FIRST:
        if (root / name).is_file():
            return root / name
    others = [
        path
        for path in sorted(root.iterdir())
        if is_kind(path.name, (".yaml", ".yml")) and path.is_file() and _describes_data(path)
    ]
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise DataError(
            f"{root}: several files could describe the data set: {names}; name one: --data {others[0]}"
        )
    return others[0] if others else None


def read_data_yaml(path: Path, found: Findings | None = None) -> DataYaml:
    """Read a ``data.yaml``; ``found`` takes up what is odd about its text.

    Raises:
        AnnotationError: It is no YAML mapping, or its class names are neither a list nor a mapping of numbers.
    """
    content = _load(path, found)
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: holds no keys, expected train, val and names")
    splits: dict[str, tuple[str, ...]] = {}
    keys: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(key, str) and key.lower() in _SPLIT_KEYS:
            paths = tuple(item for item in (value if isinstance(value, list) else [value]) if item)
            if any(not isinstance(item, str) for item in paths):
                raise AnnotationError(f"{path}: {key} is {_shown(value)}, expected folders or a .txt file")
            if paths and canonical_split(key) not in splits:
                splits[canonical_split(key)], keys[canonical_split(key)] = paths, key
    base, count = content.get("path"), content.get("nc")
    return DataYaml(
        path=path,
        base=base if isinstance(base, str) else "",
        splits=splits,
        keys=keys,
        names=_names(path, content["names"]) if content.get("names") else None,
        count=int(count) if isinstance(count, str) and count.strip().isdigit() else None,
        keypoint_values=_keypoint_values(content.get("kpt_shape")),
    )


def locate(written: str, bases: tuple[Path, ...], root: Path) -> tuple[Path | None, bool]:
    """Find where a path of ``data.yaml`` or of a list of images lies inside the data set.

    Args:
        written: The path as it is written.
        bases: Folders that it may be relative to, the likeliest first.
        root: Folder of the data set.

    Returns:
        The path, or None if there is nothing inside the data set; and whether it was found by its last parts only.
    """
    plain = written.strip().replace("\\", "/")
    top = Path(os.path.abspath(root))  # noqa: PTH100 - links inside the data set are the user's own
    for base in bases:
        exact = Path(os.path.abspath(base / plain))  # noqa: PTH100
        if exact.is_relative_to(top) and exact.exists():
            return root / exact.relative_to(top), False
    for tail in _tails(plain):
        if (root / tail).exists():
            return root / tail, True
    return None, False


def locate_split(content: DataYaml, split: str, root: Path) -> tuple[list[Path], str]:
    """Find the folders and lists of a split; say how they were found; none if nothing of it is there.

    Raises:
        DataError: They lie outside the data set.
    """
    here = content.path.parent
    bases = tuple(dict.fromkeys((here / content.base, here, root)))
    found: list[Path] = []
    words: list[str] = []
    for written in content.splits[split]:
        path, is_moved = locate(written, bases, root)
        if path is None:
            _refuse_outside(content, split, written, bases, root)
            continue
        if path.is_dir() and not any(walk_files(path, *IMAGE_SUFFIXES)):
            continue
        found.append(path)
        place = relative(path, root)
        words.append(f"{written}, which lies in {place}" if is_moved else written)
    return found, f"{content.path.name} names {content.keys[split]}: {'; '.join(words)}"


def _refuse_outside(content: DataYaml, split: str, written: str, bases: tuple[Path, ...], root: Path) -> None:
    for base in bases:
        path = Path(os.path.abspath(base / written))  # noqa: PTH100
        if path.exists():
            raise DataError(
                f"{content.path}: {content.keys[split]} is {written}, which is {path}, outside the data set {root}"
                "; put data.yaml into the folder that holds the images and labels, and give that folder"
            )


def _tails(written: str) -> Iterator[PurePosixPath]:
    """Yield last parts of a path, the longest first, also with other spellings of a split: valid, validate."""
    parts = [part for part in written.split("/") if part not in ("", ".", "..") and not part.endswith(":")]
    for start in range(len(parts)):
        spellings = [SPLIT_ALIASES.get(canonical_split(part), ()) for part in parts[start:]]
        choices = [dict.fromkeys((part, *others)) for part, others in zip(parts[start:], spellings, strict=True)]
        yield from (PurePosixPath(*choice) for choice in itertools.islice(itertools.product(*choices), 64))


def _load(path: Path, found: Findings | None = None) -> Any:
    """Load the YAML with every scalar as text, so that a class ``no`` is not read as false, nor ``007`` as 7."""
    try:
        return yaml.load(
            read_text(path, found=found), Loader=yaml.BaseLoader
        )  # builds text, lists and mappings only
    except (yaml.YAMLError, RecursionError) as error:
        raise AnnotationError(f"{path}: not valid YAML: {error}; correct the file") from error


def _describes_data(path: Path) -> bool:
    try:
        content = _load(path)
    except AnnotationError:
        return False
    return isinstance(content, dict) and "names" in content and any(str(key) in _SPLIT_KEYS for key in content)


def _names(path: Path, names: Any) -> dict[int, str]:
    entries: list[tuple[Any, Any]] = list(names.items()) if isinstance(names, dict) else []
    if isinstance(names, list):
        entries = list(enumerate(names))
    try:
        found = {int(number): name for number, name in entries}
    except (TypeError, ValueError):
        found = {}
    if not found or not all(isinstance(name, str) for name in found.values()):
        raise AnnotationError(f"{path}: names is {_shown(names)}, expected class names, or number: name")
    return found


def _shown(value: Any) -> str:
    """Describe a value; a structure is only named, since a few lines of YAML can unfold into gigabytes."""
    if isinstance(value, str):
        return repr(value[:80])
    first = next(iter(value), None)
    inner = f" that begins with {first[:40]!r}" if isinstance(first, str) else ""
    return f"a {'list' if isinstance(value, list) else 'mapping'}{inner}"


def _keypoint_values(shape: Any) -> int:
    if not isinstance(shape, list) or not all(isinstance(item, str) and item.isdigit() for item in shape):
        return 0
    return math.prod(map(int, shape))
