"""Masks of COCO JSON against their boxes, areas and images.

On COCO itself the bounds of polygons equal the boxes to 1e-12 pixels and those of crowd masks to one pixel, while
areas of small masks differ by up to 45 %; the tolerances are set above that.

Shapes: N annotations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from hotcoco import mask as mask_functions

from detrkit.classes import SizeHW
from detrkit.curation.check.findings import Findings
from detrkit.curation.check.source import SplitData, boxes_text, read_masks

BOX_PIXELS = 2.0
BOX_SHARE = 0.02
"""Of the side of the box: labelling tools round polygons on a smaller copy of the image."""
OUTSIDE_PIXELS = 2.0
FARTHEST = 1e9
AREA_FACTOR, AREA_PIXELS = 2.0, 64.0
"""An area is far from that of its mask if it is more than twice or less than half of it, and by so many pixels."""


@dataclasses.dataclass(frozen=True)
class Masks:
    """What the masks of a split say.

    Args:
        bounds_xyxy: Bounds in pixels, NaN where there is no mask, float64 ``[N, 4]``.
        area: Pixels, of polygons by the shoelace formula, NaN where there is no mask, ``[N]``.
        is_short: A polygon has fewer than three points, bool ``[N]``.
        fault: What is wrong with a mask that cannot be decoded, by annotation row.
    """

    bounds_xyxy: np.ndarray
    area: np.ndarray
    is_short: np.ndarray
    fault: dict[int, str]


def decode_masks(split: SplitData) -> Masks | None:
    """Bounds and areas of all masks of a split; None if it has none."""
    raw = read_masks(split)
    if raw is None or len(raw) != len(split.table.annotation_ids):
        return None
    count = len(raw)
    masks = Masks(np.full((count, 4), np.nan), np.full(count, np.nan), np.zeros(count, dtype=bool), {})
    for row, text in enumerate(raw):
        content = msgspec.json.decode(text)
        if not content:
            continue  # null and [], as exports without masks write
        image = int(split.image_rows[row])
        size_hw = None if image < 0 else split.table.sizes_hw[image].tolist()
        try:
            _decode(content, row, size_hw, masks)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError) as error:
            masks.fault[row] = str(error) or type(error).__name__
    return masks if np.isfinite(masks.area).any() or masks.fault or masks.is_short.any() else None


def check_masks(split: SplitData, masks: Masks, found: Findings) -> None:
    """Compare masks with boxes (as read rightly), areas and images."""

    def report(kind: str, rows: np.ndarray, words: Any) -> None:
        found.add_rows(
            kind,
            split.name,
            split.places(rows),
            lambda at: f"{split.place(int(rows[at]))}: {words(int(rows[at]))}",
        )

    report("mask_unreadable", np.array(sorted(masks.fault), dtype=np.int64), lambda row: masks.fault[row])
    report("mask_polygon_short", np.flatnonzero(masks.is_short), lambda row: "fewer than six numbers")
    bounds = masks.bounds_xyxy
    rows = np.flatnonzero(np.isfinite(bounds).all(axis=1) & (split.image_rows >= 0))
    limits = split.limits_hw[split.image_rows[rows]][:, ::-1].astype(np.float64)
    leaves = (bounds[rows, :2] < -OUTSIDE_PIXELS) | (bounds[rows, 2:] > limits + OUTSIDE_PIXELS)
    is_outside = leaves.any(axis=1) & (limits > 0).all(axis=1)
    report("mask_outside_image", rows[is_outside], lambda row: f"bounds {boxes_text(bounds[row])}")
    rows = rows[~is_outside & np.isfinite(split.repaired_xywh[rows]).all(axis=1)]
    rows = rows[~masks.is_short[rows]]
    mismatched = rows[_differs(split.repaired_xywh[rows], bounds[rows])]
    report("mask_box_mismatch", mismatched, lambda row: _mismatch(split, masks, row))
    _check_areas(split, masks, np.setdiff1d(rows, mismatched), report)


def _check_areas(split: SplitData, masks: Masks, rows: np.ndarray, report: Any) -> None:
    written, area = split.table.area[rows], masks.area[rows]
    box = split.repaired_xywh[rows, 2] * split.repaired_xywh[rows, 3]
    # Many exports write the area of the box; that is a convention, not a fault.
    is_of_box = np.abs(written - box) <= 0.02 * box + 2
    far = (np.maximum(written, area) > AREA_FACTOR * np.minimum(written, area)) & (
        np.abs(written - area) > AREA_PIXELS
    )
    # The rules of area_wrong and area_zero have spoken of the rest.
    told = ~np.isfinite(written) | (written <= 0) | (written > 1.05 * box + 2)
    report(
        "mask_area_mismatch",
        rows[far & ~is_of_box & ~told],
        lambda row: f"area {split.table.area[row]:g}, mask {masks.area[row]:.0f}",
    )


def _differs(xywh: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    tolerance = np.maximum(BOX_PIXELS, BOX_SHARE * np.tile(xywh[:, 2:], 2))
    differs: np.ndarray = (np.abs(corners - bounds) > tolerance).any(axis=1)
    return differs


def _mismatch(split: SplitData, masks: Masks, row: int) -> str:
    x, y, width, height = split.repaired_xywh[row]
    box = np.array([x, y, x + width, y + height])
    return f"corners of the box {boxes_text(box)}, of the mask {boxes_text(masks.bounds_xyxy[row].round(1))}"


def _decode(content: Any, row: int, size_hw: list[int] | None, masks: Masks) -> None:
    if isinstance(content, dict):
        _decode_rle(content, row, size_hw, masks)
        return
    if not isinstance(content, list):
        raise ValueError(f"holds a {type(content).__name__}, expected polygons or an RLE")
    if content and isinstance(content[0], (int, float)):
        content = [content]  # one polygon, not in a list of its own
    parts = [np.array(part, dtype=np.float64).reshape(-1) for part in content]
    whole = [part[: len(part) // 2 * 2].reshape(-1, 2) for part in parts if len(part) >= 6]
    masks.is_short[row] = len(whole) < len(parts)
    if any(len(part) % 2 for part in parts):
        raise ValueError("a polygon has an odd number of coordinates")
    if not whole:
        return
    points = np.concatenate(whole)
    if not (np.abs(points) < FARTHEST).all():
        raise ValueError("a polygon has coordinates that are no numbers, or no pixels")
    masks.bounds_xyxy[row] = [*points.min(axis=0), *points.max(axis=0)]
    masks.area[row] = sum(_shoelace(part) for part in whole)


def _decode_rle(content: dict[str, Any], row: int, size_hw: list[int] | None, masks: Masks) -> None:
    height, width = (int(side) for side in content["size"])
    counts = content["counts"]
    if size_hw is not None and all(size_hw) and [height, width] != size_hw:
        raise ValueError(f"RLE of {width} x {height} pixels on an image of {size_hw[1]} x {size_hw[0]}")
    if isinstance(counts, list):
        total = sum(counts)
        if total != height * width:
            raise ValueError(f"RLE counts {total} pixels, expected {height} x {width}")
        rle = mask_functions.fr_py_objects({"size": [height, width], "counts": counts}, height, width)
    else:
        rle = {"size": [height, width], "counts": counts}
    x, y, box_width, box_height = np.ravel(mask_functions.to_bbox(rle)).tolist()
    if box_width > 0 and box_height > 0:
        masks.bounds_xyxy[row] = [x, y, x + box_width, y + box_height]
    masks.area[row] = float(np.ravel(mask_functions.area(rle))[0])


def _shoelace(points: np.ndarray) -> float:
    x, y = points[:, 0], points[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def mask_entry_clipped(
    segmentation: Any, move: Callable[[np.ndarray], np.ndarray], size_hw: SizeHW
) -> tuple[list[list[float]] | None, np.ndarray, str]:
    """Polygons that enclose something and lie in the image.

    Args:
        segmentation: Polygons of an annotation.
        move: Puts points ``[n, 2]`` into the frame of the image.
        size_hw: Of the image.

    Returns:
        The polygons, None if they can stay as they are; their bounds, NaN if nothing is left; the kind of finding
        that made the difference.
    """
    parts = [segmentation] if segmentation and isinstance(segmentation[0], (int, float)) else segmentation
    limit = np.array([size_hw[1], size_hw[0]], dtype=np.float64)
    kept: list[np.ndarray] = []
    kind, changed = "mask_polygon_short", len(parts) != len(segmentation)
    for part in parts:
        if len(part) < 6:
            changed = True
            continue
        points = np.array(part, dtype=np.float64).reshape(-1, 2)
        moved = move(points)
        if (moved < -OUTSIDE_PIXELS).any() or (moved > limit + OUTSIDE_PIXELS).any():
            moved, kind = np.clip(moved, 0, limit), "mask_outside_image"
        if (np.ptp(moved, axis=0) > 0).all():
            kept.append(moved)
        changed = changed or moved is not points
    if not kept:
        return [], np.full(4, np.nan), kind
    points = np.concatenate(kept)
    bounds = np.concatenate([points.min(axis=0), points.max(axis=0)])
    polygons = [part.ravel().round(3).tolist() for part in kept]
    return (polygons if changed else None), bounds, kind
