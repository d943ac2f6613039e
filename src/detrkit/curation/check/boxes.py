"""Faults of boxes: missing, empty, outside, written another way than the format has it, twice.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import numpy as np

from detrkit.curation.check.masks import Masks
from detrkit.curation.check.source import SplitData, boxes_text
from detrkit.data.box_formats import EDGE_PIXELS, judge, overhang
from detrkit.data.faults import Findings
from detrkit.data.formats import FORMATS

ROUNDING = 0.01
EDGE_SHARE = 0.003
"""Of the side: on a large image, boxes were drawn on a smaller copy and rounded there."""
_EVIDENCE = {
    "box_xyxy": "fits as corners",
    "box_xywh": "fits as corner and size",
    "box_cxcywh": "fits as centre and size",
    "box_normalised": "all numbers are between 0 and 1",
    "box_in_pixels": "fits as pixels",
}


def check_boxes(split: SplitData, masks: Masks | None, found: Findings) -> None:
    """Find faulty boxes, and what they should be; fills ``box_fault`` and ``repaired_xywh`` of the split."""
    boxes = split.table.boxes_xywh
    # boxes without numbers
    missing, finite = np.isnan(boxes).all(axis=1), np.isfinite(boxes).all(axis=1)
    _mark(split, found, "box_missing", np.flatnonzero(missing))
    _mark(split, found, "box_not_finite", np.flatnonzero(~finite & ~missing))
    # boxes in another format, without extent, outside of their image
    rows = np.flatnonzero(finite)
    image_rows = split.image_rows[rows]
    placed = image_rows >= 0
    placed[placed] = (split.limits_hw[image_rows[placed]] > 0).all(axis=1)
    _check_format(split, rows[placed], masks, found)
    _check_sizes(split, rows, found)
    _check_extents(split, rows[placed], found)
    removed = np.isin(split.box_fault, ["box_missing", "box_not_finite", "box_empty", "box_outside"])
    split.repaired_xywh[removed] = np.nan
    _clip(split, rows[placed])
    _check_copies(split, found)
    _check_area(split, found)


def _check_format(split: SplitData, rows: np.ndarray, masks: Masks | None, found: Findings) -> None:
    """Find boxes that are written another way than the format has it."""
    if not len(rows):
        return
    split.repaired_xywh[rows], split.box_fault[rows] = judge(
        split.table.boxes_xywh[rows],
        split.limits_hw[split.image_rows[rows]],
        split.image_rows[rows],
        FORMATS[split.files.format].box_format,
        split.files.format == "yolo",
        split.table.area[rows],
        None if masks is None else masks.bounds_xyxy[rows],
    )
    for kind in _EVIDENCE:
        _mark(split, found, kind, rows[split.box_fault[rows] == kind])


def _check_sizes(split: SplitData, rows: np.ndarray, found: Findings) -> None:
    """Find boxes without or with negative extent; corners in the wrong order are put right where that fits."""
    xywh = split.repaired_xywh
    sizes = xywh[rows, 2:]
    negative = rows[(sizes < 0).any(axis=1)]
    _mark(split, found, "box_empty", rows[(sizes == 0).any(axis=1) & (sizes >= 0).all(axis=1)])
    _mark(split, found, "box_negative", negative)
    upper = np.minimum(xywh[negative, :2], xywh[negative, :2] + xywh[negative, 2:])
    xywh[negative] = np.concatenate([upper, np.abs(xywh[negative, 2:])], axis=1)
    xywh[negative[(xywh[negative, 2:] == 0).any(axis=1)]] = np.nan


def _check_extents(split: SplitData, rows: np.ndarray, found: Findings) -> None:
    """Find boxes that do not lie inside their image."""
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
    faults = {
        "box_outside": outside,
        "box_larger_than_image": ~outside & larger,
        "box_leaves_image": ~outside & ~larger & far,
        "box_over_edge": ~outside & ~larger & some & ~far,
        "box_below_pixel": ~outside & (xywh[:, 2:] < 1).any(axis=1),
    }
    for kind, is_faulty in faults.items():
        _mark(split, found, kind, rows[sound & is_faulty])


def _clip(split: SplitData, rows: np.ndarray) -> None:
    extent = split.limits_hw[split.image_rows[rows]][:, ::-1].astype(np.float64)
    xywh = split.repaired_xywh[rows]
    upper = np.clip(xywh[:, :2], 0, extent)
    clipped = np.concatenate([upper, np.clip(xywh[:, :2] + xywh[:, 2:], 0, extent) - upper], axis=1)
    moved = np.abs(clipped - xywh).max(axis=1, initial=0) > ROUNDING
    clipped[(clipped[:, 2:] <= 0).any(axis=1)] = np.nan
    split.repaired_xywh[rows[moved]] = clipped[moved]


def first_alike(images: np.ndarray, boxes: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
    """Return for each box the position of the first one like it, int64 ``[N]``.

    Args:
        images: Image of each box, int ``[N]``.
        boxes: Boxes, compared to a thousandth of a pixel, ``[N, 4]``.
        classes: Class of each box where boxes of different classes are not alike, int ``[N]``.
    """
    keys = np.column_stack([images, *(() if classes is None else (classes,)), np.rint(boxes * 1000)])
    if not len(keys):
        return np.zeros(0, dtype=np.int64)
    _, first, alike = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return np.asarray(first[alike.ravel()])


def _check_copies(split: SplitData, found: Findings) -> None:
    """Find the same box twice in an image, under one class or under two."""
    table = split.table
    rows = np.flatnonzero((split.image_rows >= 0) & np.isfinite(table.boxes_xywh).all(axis=1) & ~table.iscrowd)
    rows = rows[(split.box_fault[rows] != "box_empty")]
    images, boxes, classes = split.image_rows[rows], table.boxes_xywh[rows], table.category_refs[rows]
    place = np.arange(len(rows))
    same_class, same_box = first_alike(images, boxes, classes), first_alike(images, boxes)
    names = dict(zip(table.category_ids, table.category_names, strict=True))

    def report(kind: str, copies: np.ndarray, originals: np.ndarray) -> None:
        original_of = dict(zip(rows[copies].tolist(), rows[originals[copies]].tolist(), strict=True))

        def words(row: int) -> str:
            original = original_of[row]
            name, first_name = (names.get(int(table.category_refs[one]), "?") for one in (row, original))
            other = "" if name == first_name else f" as {first_name!r}"
            first = table.place(original, int(split.image_rows[original]))
            return f": {name!r} {boxes_text(table.boxes_xywh[row])} is {first}{other}"

        split.report(found, kind, rows[copies], words)

    report("duplicate_boxes", np.flatnonzero(same_class != place), same_class)
    report("boxes_with_two_classes", np.flatnonzero((same_class == place) & (same_box != place)), same_box)
    split.repaired_xywh[rows[same_class != place]] = np.nan


def _check_area(split: SplitData, found: Findings) -> None:
    """Find areas that cannot be those of the box; the greatest convention counts both edge pixels."""
    table = split.table
    is_known = np.isfinite(table.area) & np.isfinite(split.repaired_xywh[:, 0])
    rows = np.flatnonzero((split.box_fault == "") & is_known)
    area, sizes = table.area[rows], table.boxes_xywh[rows, 2:]
    most = (sizes[:, 0] + 1) * (sizes[:, 1] + 1) * 1.05 + 2

    def words(row: int) -> str:
        return f": area {table.area[row]:g}, box {boxes_text(table.boxes_xywh[row])}"

    split.report(found, "area_wrong", rows[(area < 0) | (area > most)], words)
    split.report(found, "area_zero", rows[area == 0], words)


def _mark(split: SplitData, found: Findings, kind: str, rows: np.ndarray) -> None:
    """Count a fault of boxes and keep it as theirs."""

    def words(row: int) -> str:
        if kind == "box_missing":
            return " has no bbox of four numbers"
        box, image = boxes_text(split.table.boxes_xywh[row]), int(split.image_rows[row])
        why = f": {_EVIDENCE[kind]}" if kind in _EVIDENCE else ""
        if image < 0 or not split.limits_hw[image].all():
            return f": {box}{why}"
        height, width = split.limits_hw[image]
        return f": {box} in {width} x {height}{why}"

    split.box_fault[rows] = kind
    split.report(found, kind, rows, words)
