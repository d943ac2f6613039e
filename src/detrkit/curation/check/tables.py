"""Faults of ids and references, and what reading had to convert or leave out.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import posixpath

import numpy as np

from detrkit.curation.check.source import SplitData, repeated_rows
from detrkit.data.faults import Findings, Location


def check_tables(split: SplitData, found: Findings) -> None:
    """Check ids that repeat, references that lead nowhere, images that are listed twice or have no size."""
    table = split.table
    # what the reader met; it names only the first few of the cases that it counted
    for finding in table.report.findings:
        if finding.kind == "mask_unreadable":  # of annotations without a box; check_masks tells of all
            continue
        rest = finding.count - len(finding.examples)
        for at, example in enumerate(finding.examples):
            found.add(finding.kind, example, Location(split.name), count=1 if at else 1 + rest)
    # ids that repeat
    ids, names = table.image_ids, table.file_names

    def image(number: np.int64) -> str:
        return table.image_id_texts.get(int(number), str(number))

    def category(number: np.int64) -> str:
        return table.category_id_texts.get(int(number), str(number))

    split.report_images(
        found,
        "duplicate_image_ids",
        repeated_rows(ids),
        lambda row: f"id {image(ids[row])} of {names[row]} is that of {names[_first(ids, row)]}",
    )
    split.report(found, "duplicate_annotation_ids", repeated_rows(table.annotation_ids), lambda row: "")
    categories = np.array(table.category_ids, dtype=np.int64)
    for row in repeated_rows(categories).tolist():
        first = table.category_names[_first(categories, row)]
        example = f"id {categories[row]} is {first!r} and {table.category_names[row]!r}"
        found.add("duplicate_category_ids", example, Location(split.name))
    # references that lead nowhere
    images, classes = table.image_refs, table.category_refs
    lost, unclassed = np.flatnonzero(split.image_rows < 0), np.flatnonzero(split.class_rows < 0)
    split.report(found, "unknown_image_id", lost, lambda row: f": image {image(images[row])}")
    split.report(found, "unknown_category_id", unclassed, lambda row: f": category {category(classes[row])}")
    _check_images(split, found)


def _check_images(split: SplitData, found: Findings) -> None:
    table = split.table
    # files that are listed twice
    first_by_name: dict[str, int] = {}
    for row, name in enumerate(table.file_names):
        first = first_by_name.setdefault(posixpath.normpath(name), row)
        if first != row:
            example = f"{name} (ids {table.image_ids[first]} and {table.image_ids[row]})"
            found.add("image_listed_twice", example, Location(split.name, row))
    # images without size
    names = table.file_names
    if split.files.format in ("coco", "panoptic"):
        unsized = np.flatnonzero((table.sizes_hw < 1).any(axis=1))
        split.report_images(found, "missing_size", unsized, lambda row: names[row])
    # images without annotations
    if not len(table.annotation_ids):
        if split.name != "test":  # as published ones are
            found.add("split_without_annotations", f"{len(table.image_ids)} images", Location(split.name))
        return
    has_none = np.ones(len(table.image_ids), dtype=bool)
    has_none[split.image_rows[split.image_rows >= 0]] = False
    has_none[repeated_rows(table.image_ids)] = False
    split.report_images(found, "images_without_annotations", np.flatnonzero(has_none), lambda row: names[row])


def _first(values: np.ndarray, row: int) -> int:
    return int(np.flatnonzero(values == values[row])[0])
