"""Checking a data set: which checks run, in which order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from detrkit.config import DataConfig
from detrkit.curation.check.boxes import check_boxes
from detrkit.curation.check.classes import check_classes
from detrkit.curation.check.findings import CheckResult, Findings, Place, SplitSummary
from detrkit.curation.check.images import find_files, inspect_files
from detrkit.curation.check.masks import Masks, check_masks, decode_masks
from detrkit.curation.check.panoptic import PanopticFiles, check_panoptic, find_panoptic
from detrkit.curation.check.source import SplitData
from detrkit.curation.check.splits import check_duplicates
from detrkit.curation.check.tables import check_tables
from detrkit.data.formats import Layout, SplitFiles, find_split, find_splits, list_splits
from detrkit.data.read import load_table
from detrkit.errors import DataError, UsageError

Progress = Callable[[str, int, int], None]


class Checked:
    """A result together with what was read for it, which pages and repairs need.

    Args:
        result: The findings.
        splits: The splits that could be read.
        masks: Masks of each split that has some, by its name.
        panoptic: Panoptic annotations beside the splits.
    """

    def __init__(
        self,
        result: CheckResult,
        splits: list[SplitData],
        masks: dict[str, Masks],
        panoptic: list[PanopticFiles],
    ):
        self.result, self.splits, self.masks, self.panoptic = result, splits, masks, panoptic


def check_data(
    data: str | Path,
    *,
    layout: Layout = "auto",
    images: bool = True,
    duplicates: bool = True,
    queries: int = 100,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckResult:
    """Look for everything that is wrong with a data set.

    Args:
        data: Its folder, or a file that names it, in any layout that is read.
        layout: Take it for this layout instead of recognising one.
        images: Decode every image and panoptic mask; otherwise only the annotations are checked.
        duplicates: Compare all images with each other.
        queries: Of the model, the most objects that it can find in an image.
        workers: Threads; as many as there are CPUs, eight at most, if None.
        progress: Told the step, how many images are done and how many there are.

    Raises:
        UsageError: There is no such folder or file.
    """
    return examine(
        data,
        layout=layout,
        images=images,
        duplicates=duplicates,
        queries=queries,
        workers=workers,
        progress=progress,
    ).result


def examine(
    data: str | Path,
    *,
    layout: Layout = "auto",
    images: bool = True,
    duplicates: bool = True,
    queries: int = 100,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Checked:
    """As :func:`check_data`, with what was read."""
    data, found, skipped = Path(data), Findings(), []
    splits = _read_splits(data, layout, found)
    find_files(splits, found)
    checked_images = inspect_files(splits, found, images, workers, progress)
    masks: dict[str, Masks] = {}
    for split in splits:
        check_tables(split, found)
        decoded = decode_masks(split)
        check_boxes(split, decoded, found)
        if decoded is not None:
            masks[split.name] = decoded
            check_masks(split, decoded, found)
        _check_queries(split, queries, found)
    check_classes(splits, found)
    panoptic = find_panoptic(data, found)
    if images:
        for files in panoptic:
            check_panoptic(files, found, workers, progress)
    else:
        skipped.append("image files were not decoded")
    if duplicates and images:
        check_duplicates(splits, found, workers, progress)
    else:
        skipped.append("images were not compared with each other")
    summaries = tuple(_summary(split) for split in splits)
    result = CheckResult(data, summaries, found.build(), checked_images, tuple(skipped))
    return Checked(result, splits, masks, panoptic)


def _read_splits(data: Path, layout: Layout, found: Findings) -> list[SplitData]:
    splits = []
    for name, files in _find_splits(data, layout, found).items():
        try:
            splits.append(SplitData(name, files, load_table(files)))
        except DataError as error:
            found.add("annotations_unreadable", Place(name), str(error))
    return splits


def _find_splits(data: Path, layout: Layout, found: Findings) -> dict[str, SplitFiles]:
    """Every split that can be found; what hinders is a finding, and does not hide the other splits."""
    try:
        return find_splits(data, layout)
    except UsageError:
        raise
    except DataError as error:
        whole = error
    splits: dict[str, SplitFiles] = {}
    names = list_splits(data, layout) if data.is_dir() else {}
    for name in names:
        try:
            splits[name] = find_split(data, name, DataConfig(layout=layout))
        except DataError as error:
            found.add("annotations_unreadable", Place(name), str(error))
    if not names:
        is_json = data.is_file() and data.suffix == ".json"
        kind = "annotations_unreadable" if is_json else "data_set_unreadable"
        found.add(kind, Place(data.stem if is_json else data.name), str(whole))
    return splits


def _check_queries(split: SplitData, queries: int, found: Findings) -> None:
    rows = split.image_rows[(split.image_rows >= 0) & ~split.table.iscrowd]
    counts = np.bincount(rows, minlength=len(split.table.image_ids))
    for row in np.flatnonzero(counts > queries).tolist():
        words = f"{split.table.file_names[row]}: {counts[row]} objects, {queries} queries"
        found.add("more_objects_than_queries", Place(split.name, row), words)


def _summary(split: SplitData) -> SplitSummary:
    return SplitSummary(
        name=split.name,
        layout=split.files.layout,
        reason=split.files.reason,
        annotations=split.files.annotations,
        images=split.files.images,
        image_count=len(split.table.image_ids),
        annotation_count=len(split.table.annotation_ids),
        class_count=len(split.table.category_ids),
    )
