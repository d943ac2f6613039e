"""Faults of boxes: missing, empty, outside, written another way than the format has it, twice.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import numpy as np

from detrkit.curation.check.box_formats import EDGE_PIXELS, NATIVE, Judged, judge, overhang
from detrkit.curation.check.findings import Findings
from detrkit.curation.check.masks import Masks
from detrkit.curation.check.source import SplitData, boxes_text

ROUNDING = 0.01
EDGE_SHARE = 0.003
"""Of the side: on a large image, boxes were drawn on a smaller copy and rounded there."""
READING_WORDS = {
    "box_xyxy": "fits as corners",
    "box_xywh": "fits as corner and size",
    "box_cxcywh": "fits as centre and size",
    "box_normalised": "all numbers are between 0 and 1",
    "box_in_pixels": "fits as pixels",
}


def check_boxes(split: SplitData, masks: Masks | None, found: Findings) -> None:
    """Find faulty boxes, and what they should be; fills ``box_fault`` and ``repaired_xywh`` of the split."""
    boxes = split.table.boxes_xywh
    _fault(split, found, "box_missing", np.isnan(boxes).all(axis=1), "has no bbox of four numbers")
    _fault(split, found, "box_not_finite", ~np.isfinite(boxes).all(axis=1))
    rows = np.flatnonzero(split.box_fault == "")
    image_rows = split.image_rows[rows]
    placed = image_rows >= 0
    placed[placed] = (split.limits_hw[image_rows[placed]] > 0).all(axis=1)
    _check_placed(split, rows[placed], masks, found)
    _check_sizes(split, rows, found)
    _check_extents(split, rows[placed], found)
    removed = np.isin(split.box_fault, ["box_missing", "box_not_finite", "box_empty", "box_outside"])
    split.repaired_xywh[removed] = np.nan
    _clip(split, rows[placed])
    _check_copies(split, found)
    _check_area(split, found)


def _check_placed(split: SplitData, rows: np.ndarray, masks: Masks | None, found: Findings) -> None:
    """Boxes that are written another way than the format has it."""
    if not len(rows):
        return
    native = NATIVE[split.files.format]
    judged: Judged = judge(
        split.table.boxes_xywh[rows],
        split.limits_hw[split.image_rows[rows]],
        split.image_rows[rows],
        native,
        split.files.format == "yolo",
        split.table.area[rows],
        None if masks is None else masks.bounds_xyxy[rows],
    )
    split.repaired_xywh[rows] = judged.xywh
    split.box_fault[rows] = judged.fault
    for kind, words in READING_WORDS.items():
        faulty = rows[judged.fault == kind]
        found.add_rows(
            kind,
            split.name,
            split.places(faulty),
            lambda at, faulty=faulty, words=words: f"{_told(split, int(faulty[at]))}: {words}",  # type: ignore[misc]
        )


def _check_sizes(split: SplitData, rows: np.ndarray, found: Findings) -> None:
    """Boxes without or with negative extent; corners in the wrong order are put right where that fits."""
    xywh = split.repaired_xywh
    sizes = xywh[rows, 2:]
    negative = rows[(sizes < 0).any(axis=1)]
    empty = rows[(sizes == 0).any(axis=1) & (sizes >= 0).all(axis=1)]
    _mark(split, found, "box_empty", empty)
    _mark(split, found, "box_negative", negative)
    other = np.minimum(xywh[negative, :2], xywh[negative, :2] + xywh[negative, 2:])
    xywh[negative] = np.concatenate([other, np.abs(xywh[negative, 2:])], axis=1)
    useless = negative[(xywh[negative, 2:] == 0).any(axis=1)]
    xywh[useless] = np.nan


def _check_extents(split: SplitData, rows: np.ndarray, found: Findings) -> None:
    """Boxes that do not lie inside their image."""
    rows = rows[(split.box_fault[rows] != "box_empty")]
    xywh = split.repaired_xywh[rows]
    extent = split.limits_hw[split.image_rows[rows]][:, [1, 0, 1, 0]].astype(np.float64)
    upper, lower = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    outside = (lower <= 0).any(axis=1) | (upper >= extent[:, :2]).any(axis=1)
    split.repaired_xywh[rows[outside]] = np.nan
    beyond = overhang(xywh, extent)
    edge = np.maximum(EDGE_PIXELS, EDGE_SHARE * extent)
    far, some = (beyond > edge).any(axis=1), (beyond > ROUNDING).any(axis=1)
    larger = (xywh[:, 2:] > extent[:, :2] + edge[:, :2]).any(axis=1)
    sound = split.box_fault[rows] == ""
    masks = {
        "box_outside": outside,
        "box_larger_than_image": ~outside & larger,
        "box_leaves_image": ~outside & ~larger & far,
        "box_over_edge": ~outside & ~larger & some & ~far,
        "box_below_pixel": ~outside & (xywh[:, 2:] < 1).any(axis=1),
    }
    for kind, is_faulty in masks.items():
        _mark(split, found, kind, rows[sound & is_faulty])


def _clip(split: SplitData, rows: np.ndarray) -> None:
    extent = split.limits_hw[split.image_rows[rows]][:, ::-1].astype(np.float64)
    xywh = split.repaired_xywh[rows]
    upper = np.clip(xywh[:, :2], 0, extent)
    lower = np.clip(xywh[:, :2] + xywh[:, 2:], 0, extent)
    clipped = np.concatenate([upper, lower - upper], axis=1)
    moved = np.abs(clipped - xywh).max(axis=1, initial=0) > ROUNDING
    clipped[(clipped[:, 2:] <= 0).any(axis=1)] = np.nan
    split.repaired_xywh[rows[moved]] = clipped[moved]


def _check_copies(split: SplitData, found: Findings) -> None:
    """The same box twice in an image, under one class or under two."""
    table = split.table
    rows = np.flatnonzero((split.image_rows >= 0) & np.isfinite(table.boxes_xywh).all(axis=1) & ~table.iscrowd)
    rows = rows[(split.box_fault[rows] != "box_empty")]
    numbers = np.concatenate(
        [split.image_rows[rows, None].astype(np.float64), np.rint(table.boxes_xywh[rows] * 1000)], axis=1
    )
    if not len(rows):
        return
    _, first, same = np.unique(numbers, axis=0, return_index=True, return_inverse=True)
    same = same.ravel()
    classed = np.stack([same, table.category_refs[rows]], axis=1)
    _, first_of_class, same_of_class = np.unique(classed, axis=0, return_index=True, return_inverse=True)
    original = first_of_class[same_of_class.ravel()]
    copies = np.flatnonzero(original != np.arange(len(rows)))
    _report_copies(split, found, "duplicate_boxes", rows[copies], rows[original[copies]])
    split.repaired_xywh[rows[copies]] = np.nan
    conflicting = np.flatnonzero((original == np.arange(len(rows))) & (first[same] != np.arange(len(rows))))
    _report_copies(split, found, "boxes_with_two_classes", rows[conflicting], rows[first[same[conflicting]]])


def _report_copies(split: SplitData, found: Findings, kind: str, rows: np.ndarray, originals: np.ndarray) -> None:
    table = split.table
    names = dict(zip(table.category_ids, table.category_names, strict=True))

    def describe(at: int) -> str:
        row, original = int(rows[at]), int(originals[at])
        name = names.get(int(table.category_refs[row]), "?")
        first_name = names.get(int(table.category_refs[original]), "?")
        other = "" if name == first_name else f" as {first_name!r}"
        return (
            f"{split.place(row)}: {name!r} {boxes_text(table.boxes_xywh[row])} is {_short(split, original)}{other}"
        )

    found.add_rows(kind, split.name, split.places(rows), describe)


def _check_area(split: SplitData, found: Findings) -> None:
    """Areas that cannot be those of the box; the greatest convention counts both edge pixels."""
    table = split.table
    rows = np.flatnonzero(
        (split.box_fault == "") & np.isfinite(table.area) & np.isfinite(split.repaired_xywh[:, 0])
    )
    area, sizes = table.area[rows], table.boxes_xywh[rows, 2:]
    most = (sizes[:, 0] + 1) * (sizes[:, 1] + 1) * 1.05 + 2

    def describe(faulty: np.ndarray, at: int) -> str:
        row = int(faulty[at])
        return f"{split.place(row)}: area {table.area[row]:g}, box {boxes_text(table.boxes_xywh[row])}"

    for kind, is_faulty in (("area_wrong", (area < 0) | (area > most)), ("area_zero", area == 0)):
        faulty = rows[is_faulty]
        found.add_rows(kind, split.name, split.places(faulty), lambda at, faulty=faulty: describe(faulty, at))  # type: ignore[misc]


def _fault(split: SplitData, found: Findings, kind: str, is_faulty: np.ndarray, words: str = "") -> None:
    _mark(split, found, kind, np.flatnonzero(is_faulty & (split.box_fault == "")), words)


def _mark(split: SplitData, found: Findings, kind: str, rows: np.ndarray, words: str = "") -> None:
    split.box_fault[rows] = kind
    found.add_rows(
        kind,
        split.name,
        split.places(rows),
        lambda at: f"{split.place(int(rows[at]))} {words}" if words else _told(split, int(rows[at])),
    )


def _told(split: SplitData, row: int) -> str:
    """An annotation with its box and the size of its image."""
    image = int(split.image_rows[row])
    box = boxes_text(split.table.boxes_xywh[row])
    if image < 0 or not split.limits_hw[image].all():
        return f"{split.place(row)}: {box}"
    height, width = split.limits_hw[image]
    return f"{split.place(row)}: {box} in {width} x {height}"


def _short(split: SplitData, row: int) -> str:
    return split.table.place(row, int(split.image_rows[row]))
