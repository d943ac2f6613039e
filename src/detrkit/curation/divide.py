"""Writing parts of a data set as data sets of their own: splits, and small samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.curation.duplicates import MAX_DISTANCE, fingerprints, near_duplicates, same_source
from detrkit.curation.subsets import check_shares, class_shares, sample_rows, split_rows
from detrkit.data.formats import Layout, SplitFiles, canonical_split, find_splits
from detrkit.data.formats.coco.write import write_coco
from detrkit.data.formats.output import WriteOptions
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_split_files
from detrkit.errors import DataError, UsageError

Say = Callable[[str], None]
Progress = Callable[[int, int], None]
_FEW = 0.25
"""A part whose size differs by more than this share of what was asked is worth a word."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part that was written.

    Args:
        name: Of the split.
        images: In it.
        objects: Annotations, crowd regions included.
        classes: Classes with at least one object.
    """

    name: str
    images: int
    objects: int
    classes: int


@dataclasses.dataclass(frozen=True)
class DivideResult:
    """What was written.

    Args:
        path: The folder.
        parts: In the order asked for.
        groups: Groups of images that were kept together.
        largest_group: Images of the largest.
        deviation: Mean difference between the share of a class's images in a part and the share asked for, 0 to 1.
        notes: What deserves attention, in words.
    """

    path: Path
    parts: tuple[Part, ...]
    groups: int
    largest_group: int
    deviation: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def split_data(
    data: str | Path,
    out: str | Path,
    shares: Mapping[str, float],
    *,
    split: str | None = None,
    layout: Layout = "auto",
    seed: int = 0,
    group: bool = True,
    max_distance: int = MAX_DISTANCE,
    copy: bool = False,
    say: Say = lambda _message: None,
    progress: Progress | None = None,
) -> DivideResult:
    """Divide one split of a data set and write the parts in COCO layout.

    Args:
        data: Folder in any layout, COCO JSON file or data.yaml.
        out: New or empty folder.
        shares: By name of the new split, summing to 1.
        split: Which split to divide; may be left out where there is only one.
        layout: Forces a layout.
        seed: Of the division.
        group: Keep near-duplicates, and files that Roboflow made from one, in the same part.
        max_distance: Bits of 256 by which the hashes of near-duplicates differ at most.
        copy: Copy images; otherwise they are hard-linked where possible.
        say: Told what was found.
        progress: Told of images compared and written, and of how many of both there are.

    Raises:
        UsageError: The shares cannot be, ``out`` is not empty, or it is not clear which split is meant.
        DataError: The data set cannot be read, or is too small for so many parts.
    """
    check_shares(shares)
    _check_empty(Path(out))
    files = _only_split(find_splits(data, layout), split, data)
    index = _read(files, say)
    total = 2 * len(index) if group else len(index)
    hashing = None if progress is None else lambda done, _all: progress(done, total)
    writing = None if progress is None else lambda done, images: progress(total - images + done, total)
    groups, notes = _groups(index, files.images, max_distance, hashing) if group else ([], [])
    rows = split_rows(index, shares, seed, groups)
    notes += _size_notes(rows, shares, len(index), groups)
    parts = {part: (index.select(chosen), files.images) for part, chosen in rows.items()}
    path = _write(Path(out), parts, dict.fromkeys(parts, files), copy, writing)
    asked = np.array(list(shares.values()))[:, None]
    present = np.isfinite(differences := np.abs(class_shares(index, rows.values()) - asked))
    return DivideResult(
        path,
        _summaries(parts),
        len(groups),
        max(map(len, groups), default=0),
        float(differences[present].mean()) if present.any() else 0.0,
        tuple(notes),
    )


def sample_data(
    data: str | Path,
    out: str | Path,
    count: int,
    *,
    splits: Sequence[str] | None = None,
    layout: Layout = "auto",
    seed: int = 0,
    min_per_class: int = 1,
    copy: bool = False,
    say: Say = lambda _message: None,
    progress: Progress | None = None,
) -> DivideResult:
    """Write a small part of a data set in COCO layout, its classes in proportion.

    Args:
        data: Folder in any layout, COCO JSON file or data.yaml.
        out: New or empty folder.
        count: Images in all, shared among the splits in proportion to their size.
        splits: Which ones; all if None.
        layout: Forces a layout.
        seed: Of the choice.
        min_per_class: Images that each class gets at least in each split, where possible.
        copy: Copy images; otherwise they are hard-linked where possible.
        say: Told what was found.
        progress: Told of images written.

    Raises:
        UsageError: ``count`` is under the number of splits, ``out`` is not empty, or there is no such split.
        DataError: The data set cannot be read.
    """
    _check_empty(Path(out))
    found = _chosen(find_splits(data, layout), splits, data)
    if count < len(found):
        raise UsageError(f"asked for {count} images, expected at least one for each of: {', '.join(found)}")
    indexes = {name: _read(files, say) for name, files in found.items()}
    quotas = _shared_out(count, [len(index) for index in indexes.values()])
    parts, notes = {}, []
    for (name, index), quota in zip(indexes.items(), quotas, strict=True):
        part = index.select(sample_rows(index, quota, seed, min_per_class))
        parts[name] = (part, found[name].images)
        missing = len(np.unique(index.labels)) - len(np.unique(part.labels))
        if missing:
            notes.append(f"{name}: {missing} classes have no object among {quota} images; ask for more images")
    path = _write(Path(out), parts, found, copy, progress)
    return DivideResult(path, _summaries(parts), 0, 0, 0.0, tuple(notes))


def _only_split(found: Mapping[str, SplitFiles], split: str | None, data: str | Path) -> SplitFiles:
    if split is None and len(found) > 1:
        raise UsageError(f"{data} is divided already, into {', '.join(found)}; name the one to divide: --split")
    return next(iter(_chosen(found, None if split is None else [split], data).values()))


def _chosen(
    found: Mapping[str, SplitFiles], splits: Sequence[str] | None, data: str | Path
) -> Mapping[str, SplitFiles]:
    wanted = list(found) if not splits else list(dict.fromkeys(map(canonical_split, splits)))
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise UsageError(f"{data} has no split {unknown[0]!r}; it has {', '.join(found)}")
    return {name: found[name] for name in wanted}


def _read(files: SplitFiles, say: Say) -> CocoIndex:
    index, report = read_split_files(files)
    for line in report.lines():
        say(line)
    return index


def _groups(
    index: CocoIndex, images: Path, max_distance: int, progress: Progress | None
) -> tuple[list[np.ndarray], list[str]]:
    """Images that must stay together, and what to say of them."""
    names = [index.file_name(row) for row in range(len(index))]
    prints = fingerprints([images / name for name in names], progress=progress)
    groups = [*near_duplicates(prints, max_distance), *same_source(names)]
    notes = []
    if prints.errors:
        first = next(iter(prints.errors.values()))
        notes.append(f"{len(prints.errors)} images cannot be decoded and were compared with none: {first}")
    return groups, notes


def _size_notes(
    rows: Mapping[str, np.ndarray], shares: Mapping[str, float], total: int, groups: Sequence[np.ndarray]
) -> list[str]:
    largest = max(map(len, groups), default=0)
    notes = []
    for name, chosen in rows.items():
        wanted = shares[name] * total
        if abs(len(chosen) - wanted) > max(1.0, _FEW * wanted):
            why = f"; the largest group of near-duplicates, which stays together, has {largest}" if largest else ""
            notes.append(f"{name} has {len(chosen)} images where {wanted:.0f} were asked for{why}")
    return notes


def _shared_out(count: int, sizes: Sequence[int]) -> list[int]:
    """``count`` in whole numbers, in proportion to the sizes, at least 1 each, by the largest remainder."""
    exact = np.array(sizes) * min(count, sum(sizes)) / sum(sizes)
    quotas = np.maximum(np.floor(exact).astype(np.int64), 1)
    for place in np.argsort(quotas - exact, kind="stable"):
        if quotas.sum() < min(count, sum(sizes)):
            quotas[place] += 1
    while quotas.sum() > count:
        quotas[int(np.argmax(quotas))] -= 1
    return [int(quota) for quota in quotas]


def _check_empty(out: Path) -> None:
    """Before minutes of work, say that their result would have no place."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(f"{out} is there already and not empty; give a new folder, so that nothing is mixed")


def _write(
    out: Path,
    parts: Mapping[str, tuple[CocoIndex, Path]],
    files: Mapping[str, SplitFiles],
    copy: bool,
    progress: Progress | None,
) -> Path:
    sources = {name: files[name].annotations for name in parts if files[name].format == "coco"}
    empty = [name for name, (index, _) in parts.items() if not len(index)]
    if empty:
        raise DataError(f"{empty[0]} would have no image; give it a larger share")
    return write_coco(out, parts, WriteOptions(copy=copy, sources=sources, progress=progress)).path


def _summaries(parts: Mapping[str, tuple[CocoIndex, Path]]) -> tuple[Part, ...]:
    return tuple(
        Part(name, len(index), len(index.labels), len(np.unique(index.labels)))
        for name, (index, _) in parts.items()
    )
