"""Parts of a data set written as data sets of their own: splits, and small samples."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.curation.convert import panoptic_sources
from detrkit.curation.duplicates import MAX_DISTANCE, fingerprints, near_duplicates, same_source
from detrkit.curation.subsets import check_shares, class_shares, sample_rows, split_rows
from detrkit.data.faults import ReadReport
from detrkit.data.formats import Layout, SplitFiles, find_splits
from detrkit.data.formats.coco.write import write_coco
from detrkit.data.formats.output import WriteOptions, check_new_folder
from detrkit.data.formats.panoptic_write import write_panoptic
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_told
from detrkit.errors import DataError, UsageError

Say = Callable[[str], None]
Progress = Callable[[int, int], None]
_FEW = 0.25
"""A part whose size differs by more than this share of what was asked is worth a word."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part that was written.

    Args:
        name: Name of the split.
        images: Number of images.
        objects: Number of annotations, crowd regions included.
        classes: Number of classes with at least one object.
    """

    name: str
    images: int
    objects: int
    classes: int


@dataclasses.dataclass(frozen=True)
class DivideResult:
    """A data set that was written.

    Args:
        path: Folder of it.
        parts: Parts in the order asked for.
        groups: Number of groups of images that were kept together.
        largest_group: Number of images of the largest.
        deviation: Mean difference between the share of a class's images in a part and the share asked for, 0 to 1.
        notes: Sentences on what deserves attention.
        reading: Report of reading each split of the original, by its name.
    """

    path: Path
    parts: tuple[Part, ...]
    groups: int
    largest_group: int
    deviation: float
    notes: tuple[str, ...]
    reading: Mapping[str, ReadReport]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        reading = {name: report.to_dict() for name, report in self.reading.items()}
        return {**dataclasses.asdict(self), "path": str(self.path), "reading": reading}


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
    image_folder: Path | None = None,
    say: Say = lambda _message: None,
    progress: Progress | None = None,
) -> DivideResult:
    """Divide one split of a data set and write the parts in COCO layout; COCO panoptic stays that, as it is.

    Args:
        data: Folder in any layout, COCO JSON file or data.yaml.
        out: New or empty folder.
        shares: Share of the images by name of the new split, summing to 1.
        split: Split to divide; may be left out where there is only one.
        layout: Layout to take it for.
        seed: Seed of the division.
        group: Whether near-duplicates, and files that Roboflow made from one, stay in the same part.
        max_distance: Bits of 256 by which the hashes of near-duplicates differ at most.
        copy: Whether to copy images; otherwise they are hard-linked where possible.
        image_folder: Folder of the images, where they lie elsewhere than the annotations.
        say: Function told what was found.
        progress: Function told of images compared and written, and of how many of both there are.

    Raises:
        UsageError: The shares cannot be, ``out`` is not empty, or it is not clear which split is meant.
        DataError: The data set cannot be read, or is too small for so many parts.
    """
    check_shares(shares)
    check_new_folder(Path(out))
    found = find_splits(data, layout, [split] if split else None, image_folder)
    if len(found) > 1:
        raise UsageError(f"{data} is divided already, into {', '.join(found)}; name the one to divide: --split")
    ((name, files),) = found.items()
    index, report = read_told(files, say, masks=files.format != "coco")
    total = 2 * len(index) if group else len(index)
    hashing = None if progress is None else lambda done, _all: progress(done, total)
    writing = None if progress is None else lambda done, images: progress(total - images + done, total)
    groups, notes = _groups(index, files.images, max_distance, hashing) if group else ([], [])
    rows = split_rows(index, shares, seed, groups)
    notes += _size_notes(rows, shares, len(index), groups)
    parts = {part: (index.select(chosen), files.images) for part, chosen in rows.items()}
    beside = dict.fromkeys(parts, _panoptic_of(data, files, name, image_folder))
    notes += _write(Path(out), parts, dict.fromkeys(parts, files), beside, copy, writing)
    asked = np.array(list(shares.values()))[:, None]
    present = np.isfinite(differences := np.abs(class_shares(index, rows.values()) - asked))
    deviation = float(differences[present].mean()) if present.any() else 0.0
    largest = max(map(len, groups), default=0)
    return DivideResult(
        Path(out), _summaries(parts), len(groups), largest, deviation, tuple(notes), {name: report}
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
    image_folder: Path | None = None,
    say: Say = lambda _message: None,
    progress: Progress | None = None,
) -> DivideResult:
    """Write a small part of a data set in COCO layout, its classes in proportion; COCO panoptic stays that.

    Args:
        data: Folder in any layout, COCO JSON file or data.yaml.
        out: New or empty folder.
        count: Number of images in all, shared among the splits in proportion to their size.
        splits: Names of splits; all if None.
        layout: Layout to take it for.
        seed: Seed of the choice.
        min_per_class: Number of images that each class gets at least in each split, where possible.
        copy: Whether to copy images; otherwise they are hard-linked where possible.
        image_folder: Folder of the images, where they lie elsewhere than the annotations.
        say: Function told what was found.
        progress: Function told of images written.

    Raises:
        UsageError: ``count`` is under the number of splits, ``out`` is not empty, or there is no such split.
        DataError: The data set cannot be read.
    """
    check_new_folder(Path(out))
    found = find_splits(data, layout, splits, image_folder)
    if count < len(found):
        raise UsageError(f"asked for {count} images, expected at least one for each of: {', '.join(found)}")
    read = {name: read_told(files, say, masks=files.format != "coco") for name, files in found.items()}
    quotas = _shared_out(count, [len(index) for index, _ in read.values()])
    parts, notes = {}, []
    for (name, (index, _)), quota in zip(read.items(), quotas, strict=True):
        part = index.select(sample_rows(index, quota, seed, min_per_class))
        parts[name] = (part, found[name].images)
        missing = len(np.unique(index.labels)) - len(np.unique(part.labels))
        if missing:
            notes.append(f"{name}: {missing} classes have no object among {quota} images; ask for more images")
    beside = {name: _panoptic_of(data, files, name, image_folder) for name, files in found.items()}
    notes += _write(Path(out), parts, found, beside, copy, progress)
    reading = {name: report for name, (_, report) in read.items()}
    return DivideResult(Path(out), _summaries(parts), 0, 0, 0.0, tuple(notes), reading)


def _groups(
    index: CocoIndex, images: Path, max_distance: int, progress: Progress | None
) -> tuple[list[np.ndarray], list[str]]:
    """Group the images that must stay together, and say of those that could not be compared."""
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
    """Divide ``count`` in whole numbers, in proportion to sizes, at least 1 each, by largest remainder."""
    exact = np.array(sizes) * min(count, sum(sizes)) / sum(sizes)
    quotas = np.maximum(np.floor(exact).astype(np.int64), 1)
    for place in np.argsort(quotas - exact, kind="stable"):
        if quotas.sum() < min(count, sum(sizes)):
            quotas[place] += 1
    while quotas.sum() > count:
        quotas[int(np.argmax(quotas))] -= 1
    return [int(quota) for quota in quotas]


def _write(
    out: Path,
    parts: Mapping[str, tuple[CocoIndex, Path]],
    files: Mapping[str, SplitFiles],
    panoptic: Mapping[str, SplitFiles | None],
    copy: bool,
    progress: Progress | None,
) -> list[str]:
    """Write the parts, what is panoptic as it is; return what of it is lacking, in words."""
    sources = {name: files[name].annotations for name in parts if files[name].format == "coco"}
    empty = [name for name, (index, _) in parts.items() if not len(index)]
    if empty:
        raise DataError(f"{empty[0]} would have no image; give it a larger share")
    kept = panoptic_sources({name: found for name, found in panoptic.items() if found is not None})
    options = WriteOptions(copy=copy, sources=sources, progress=progress, panoptic=kept)
    is_panoptic = any(found.format == "panoptic" for found in files.values())
    return (write_panoptic if is_panoptic else write_coco)(out, parts, options)


def _panoptic_of(data: str | Path, files: SplitFiles, name: str, image_folder: Path | None) -> SplitFiles | None:
    """Find the panoptic annotations of a split: its own, or those beside COCO JSON."""
    if files.format == "panoptic":
        return files
    if files.format != "coco" or not Path(data).is_dir():
        return None
    with contextlib.suppress(DataError, UsageError):
        return find_splits(data, "panoptic", [name], image_folder)[name]
    return None


def _summaries(parts: Mapping[str, tuple[CocoIndex, Path]]) -> tuple[Part, ...]:
    return tuple(
        Part(name, len(index), len(index.labels), len(np.unique(index.labels)))
        for name, (index, _) in parts.items()
    )
