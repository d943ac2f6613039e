"""Faults of ids and references, and what reading had to convert.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import posixpath
from collections import Counter

import numpy as np

from detrkit.curation.check.findings import Findings, Place
from detrkit.curation.check.source import SplitData

OF_READING = {
    "TEXT_ID": "id_is_text",
    "TEXT_NUMBER": "number_is_text",
    "UNLABELLED_IMAGE": "image_without_label_file",
    "ORPHAN_LABELS": "label_file_without_image",
    "UNREADABLE_LABELS": "label_file_unreadable",
    "BAD_LINE": "label_line_unreadable",
    "POLYGON": "polygons_in_labels",
    "EXTRA_NUMBERS": "extra_numbers",
    "DIFFICULT": "difficult_objects",
    "CLASS_COUNT": "class_count_differs",
    "OTHER_FILE_NAME": "file_name_in_xml",
}
TOLD_ELSEWHERE = {
    "MISSING_IMAGE",
    "UNREADABLE_IMAGE",
    "REPEATED_FILE",
    "MISSING_SIZE",
    "TURNED_SIZE",
    "REPEATED_ANNOTATION_ID",
    "REPEATED_CLASS_NAME",
    "UNKNOWN_IMAGE",
    "UNKNOWN_CATEGORY",
    "MISSING_BOX",
    "NON_FINITE_BOX",
    "EMPTY_BOX",
    "OUTSIDE_BOX",
    "CLIPPED_BOX",
}
"""Defects that the checks find themselves, with places."""


def check_tables(split: SplitData, found: Findings) -> None:
    """Ids that repeat, references that lead nowhere, images that are listed twice or have no size."""
    table, name = split.table, split.name
    _check_reading(split, found)
    again = repeated_rows(table.image_ids)
    found.add_rows(
        "duplicate_image_ids",
        name,
        [(row, -1) for row in again.tolist()],
        lambda at: (
            f"id {table.image_ids[again[at]]} of {table.file_names[again[at]]} is that of "
            f"{table.file_names[_first(table.image_ids, again[at])]}"
        ),
    )
    ids = table.annotation_ids
    twice = repeated_rows(ids)
    found.add_rows("duplicate_annotation_ids", name, split.places(twice), lambda at: f"id {ids[twice[at]]}")
    categories = np.array(table.category_ids, dtype=np.int64)
    for row in repeated_rows(categories).tolist():
        first = table.category_names[_first(categories, row)]
        example = f"id {categories[row]} is {first!r} and {table.category_names[row]!r}"
        found.add("duplicate_category_ids", Place(name), example)
    lost = np.flatnonzero(split.image_rows < 0)
    found.add_rows(
        "unknown_image_id",
        name,
        split.places(lost),
        lambda at: f"{split.place(int(lost[at]))}: image {table.image_refs[lost[at]]}",
    )
    unclassed = np.flatnonzero(split.class_rows < 0)
    found.add_rows(
        "unknown_category_id",
        name,
        split.places(unclassed),
        lambda at: f"{split.place(int(unclassed[at]))}: category {table.category_refs[unclassed[at]]}",
    )
    _check_images(split, found)


def repeated_rows(values: np.ndarray) -> np.ndarray:
    """Rows whose value occurred before, int64."""
    is_first = np.zeros(len(values), dtype=bool)
    is_first[np.unique(values, return_index=True)[1]] = True
    return np.flatnonzero(~is_first)


def _check_images(split: SplitData, found: Findings) -> None:
    table, name = split.table, split.name
    first_by_name: dict[str, int] = {}
    for row, file_name in enumerate(table.file_names):
        first = first_by_name.setdefault(posixpath.normpath(file_name), row)
        if first != row:
            example = f"{file_name} (ids {table.image_ids[first]} and {table.image_ids[row]})"
            found.add("image_listed_twice", Place(name, row), example)
    if split.files.format in ("coco", "panoptic"):
        unsized = np.flatnonzero((table.sizes_hw < 1).any(axis=1))
        found.add_rows(
            "missing_size",
            name,
            [(row, -1) for row in unsized.tolist()],
            lambda at: str(table.file_names[unsized[at]]),
        )
    if not len(table.annotation_ids):
        found.add("split_without_annotations", Place(name), f"{len(table.image_ids)} images")
        return
    has_none = np.ones(len(table.image_ids), dtype=bool)
    has_none[split.image_rows[split.image_rows >= 0]] = False
    has_none[repeated_rows(table.image_ids)] = False
    empty = np.flatnonzero(has_none)
    found.add_rows(
        "images_without_annotations",
        name,
        [(row, -1) for row in empty.tolist()],
        lambda at: str(table.file_names[empty[at]]),
    )


def _check_reading(split: SplitData, found: Findings) -> None:
    """What the reader of the format reported."""
    for finding in split.table.report.findings:
        defect = finding.defect
        if defect.name in TOLD_ELSEWHERE:
            continue
        kind = OF_READING.get(defect.name, "reading_problem")
        what, action = defect.value
        for at, example in enumerate(finding.examples):
            words = example if defect.name in OF_READING else f"{what} ({action}): {example}"
            # The report knows how many there are, but only names the first few.
            rest = finding.count - len(finding.examples) if at == 0 else 0
            found.add(kind, Place(split.name), words, count=1 + rest)


def _first(values: np.ndarray, row: int) -> int:
    return int(np.flatnonzero(values == values[row])[0])


def class_counts(split: SplitData) -> Counter[str]:
    """How many annotations each class name has; names with none are left out."""
    rows = split.class_rows[split.class_rows >= 0]
    counts = np.bincount(rows, minlength=len(split.table.category_names))
    names: Counter[str] = Counter()
    for name, count in zip(split.table.category_names, counts.tolist(), strict=True):
        if count:
            names[name] += count
    return names
