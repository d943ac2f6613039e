"""The checks of a data set, and their order."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from detrkit.curation.check.boxes import check_boxes
from detrkit.curation.check.classes import check_classes
from detrkit.curation.check.images import find_files, inspect_files
from detrkit.curation.check.masks import Masks, check_masks, decode_masks
from detrkit.curation.check.panoptic import PanopticFiles, check_panoptic, find_panoptic
from detrkit.curation.check.result import CheckResult, SplitSummary
from detrkit.curation.check.source import SplitData
from detrkit.curation.check.splits import check_duplicates
from detrkit.curation.check.tables import check_tables
from detrkit.data.faults import Findings, Location
from detrkit.data.formats import Layout, SplitFiles, find_splits, list_splits
from detrkit.data.formats.base import ImagesNotFoundError
from detrkit.data.read import index_files, load_table
from detrkit.errors import AnnotationError, DataError, UsageError

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """How a data set is checked.

    Args:
        layout: Layout to take it for instead of recognising one.
        images: Whether to decode every image and panoptic mask; otherwise only the annotations are checked.
        duplicates: Whether to compare all images with each other.
        queries: Number of queries of the model, the most objects that it can find in an image.
        workers: Number of threads; as many as there are CPUs, eight at most, if None.
        image_folder: Folder of the images, where they lie elsewhere than the annotations.
    """

    layout: Layout = "auto"
    images: bool = True
    duplicates: bool = True
    queries: int = 100
    workers: int | None = None
    image_folder: Path | None = None


@dataclasses.dataclass(frozen=True)
class Checked:
    """A result together with what was read for it, which pages and repairs need.

    Args:
        result: The findings.
        options: Options of the check.
        splits: Splits that could be read.
        masks: Masks of each split that has some, by its name.
        panoptic: Panoptic annotations beside the splits.
    """

    result: CheckResult
    options: CheckOptions
    splits: list[SplitData]
    masks: dict[str, Masks]
    panoptic: list[PanopticFiles]


def check_data(
    data: str | Path, options: CheckOptions | None = None, progress: Progress | None = None
) -> CheckResult:
    """Look for everything that is wrong with a data set; see :func:`examine`."""
    return examine(data, options, progress).result


def examine(data: str | Path, options: CheckOptions | None = None, progress: Progress | None = None) -> Checked:
    """Look for everything that is wrong with a data set, and keep what was read.

    Args:
        data: Folder of the data set, or a file that names it, in any layout that is read.
        options: How to check it; everything if None.
        progress: Function told the step, how many images are done and how many there are.

    Raises:
        UsageError: There is no such folder or file.
    """
    options = options or CheckOptions()
    data, found = Path(data), Findings()
    splits = _read_splits(data, options, found)
    if splits and not any(split.name != "train" for split in splits):
        found.add("no_val_split", f"detrkit data split {data} --out NEW", Location(splits[0].name))
    # files first: boxes are held against the sizes of the images
    find_files(splits, found)
    checked_images = inspect_files(splits, found, options.images, options.workers, progress)
    # each split for itself
    masks: dict[str, Masks] = {}
    for split in splits:
        check_tables(split, found)
        _check_losses(split, found)
        decoded = decode_masks(split)
        check_boxes(split, decoded, found)
        if decoded is not None:
            masks[split.name] = decoded
            check_masks(split, decoded, found)
        _check_queries(split, options.queries, found)
    # splits against each other
    check_classes(splits, found)
    panoptic = find_panoptic(data, found)
    if options.images:
        for files in panoptic:
            check_panoptic(files, found, options.workers, progress)
    is_compared = options.duplicates and options.images
    if is_compared:
        check_duplicates(splits, found, options.workers, progress)
    skipped = ["image files were not decoded"] * (not options.images)
    skipped += ["images were not compared with each other"] * (not is_compared)
    result = CheckResult(data, tuple(map(_summary, splits)), found.build(), checked_images, tuple(skipped))
    return Checked(result, options, splits, masks, panoptic)


def _read_splits(data: Path, options: CheckOptions, found: Findings) -> list[SplitData]:
    splits = []
    for name, files in _find_splits(data, options, found).items():
        try:
            splits.append(SplitData(name, files, load_table(files)))
        except DataError as error:
            found.add("annotations_unreadable", str(error), Location(name))
    return splits


def _find_splits(data: Path, options: CheckOptions, found: Findings) -> dict[str, SplitFiles]:
    """Find every split that can be found; what hinders is a finding, and does not hide the other splits."""
    layout, folder = options.layout, options.image_folder
    try:
        return find_splits(data, layout, image_folder=folder)
    except UsageError:
        raise
    except DataError as error:
        whole = error
    splits: dict[str, SplitFiles] = {}
    names = list_splits(data, layout) if data.is_dir() else {}
    for name in names:
        try:
            splits |= find_splits(data, layout, [name], folder)
        except ImagesNotFoundError as error:
            splits[name] = _without_images(error, name, found)
        except DataError as error:
            found.add("annotations_unreadable", str(error), Location(name))
    if isinstance(whole, ImagesNotFoundError) and not names:
        splits[data.stem] = _without_images(whole, data.stem, found)
    elif not names:
        is_json = data.is_file() and data.suffix == ".json"
        kind = "annotations_unreadable" if is_json else "data_set_unreadable"
        found.add(kind, str(whole), Location(data.stem if is_json else data.name))
    return splits


def _without_images(error: ImagesNotFoundError, name: str, found: Findings) -> SplitFiles:
    """Describe a split whose annotations can be checked though its images are not there."""
    found.add("images_not_found", str(error), Location(name))
    format_ = "panoptic" if error.annotations.name.startswith("panoptic_") else "coco"
    listings = (error.annotations.with_suffix(""),)
    return SplitFiles(
        error.annotations, error.annotations.parent, "COCO JSON", "its images are not there", format_, listings
    )


def _check_losses(split: SplitData, found: Findings) -> None:
    """Find whether reading for training loses too much of a split."""
    with contextlib.suppress(AnnotationError):  # ids that repeat, which are told already
        _, report = index_files(split.table, split.files.images)
        for reason in report.ledger.losses():
            found.add("objects_lost", f"{reason}; left out: {report.ledger}", Location(split.name))


def _check_queries(split: SplitData, queries: int, found: Findings) -> None:
    """Find images with more objects than a model can find."""
    rows = split.image_rows[(split.image_rows >= 0) & ~split.table.iscrowd]
    counts = np.bincount(rows, minlength=len(split.table.image_ids))
    names, many = split.table.file_names, np.flatnonzero(counts > queries)
    words = "{}: {} objects, {} queries".format
    split.report_images(
        found, "more_objects_than_queries", many, lambda row: words(names[row], counts[row], queries)
    )


def _summary(split: SplitData) -> SplitSummary:
    files, table = split.files, split.table
    counts = len(table.image_ids), len(table.annotation_ids), len(table.category_ids)
    where = str(files.annotations), str(files.images)
    return SplitSummary(split.name, files.layout, files.reason, *where, *counts)
