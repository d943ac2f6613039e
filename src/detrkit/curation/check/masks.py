"""Masks of COCO JSON against their boxes, areas and images.

On COCO itself the bounds of polygons equal the boxes to 1e-12 pixels and those of crowd masks to one pixel, while
areas of small masks differ by up to 45 %; the tolerances are set above that.

Shapes: N annotations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import msgspec
import numpy as np

from detrkit.curation.check.source import SplitData, boxes_text
from detrkit.data.faults import Findings
from detrkit.data.formats.base import SplitFiles, read_utf8
from detrkit.data.formats.coco.read import load_json
from detrkit.data.segmentation import mask_extent
from detrkit.files import parse_json

BOX_PIXELS = 2.0
BOX_SHARE = 0.02
"""Of the side of the box: labelling tools round polygons on a smaller copy of the image."""
OUTSIDE_PIXELS = 2.0
AREA_FACTOR, AREA_PIXELS = 2.0, 64.0
"""An area is far from that of its mask if it is more than twice or less than half of it, and by so many pixels."""


@dataclasses.dataclass(frozen=True)
class Masks:
    """The masks of a split in numbers.

    Args:
        bounds_xyxy: Bounds in pixels, NaN where there is no mask, float64 ``[N, 4]``.
        area: Pixels, of polygons by the shoelace formula, NaN where there is no mask, ``[N]``.
        polygon_fault: Kind of fault of polygons that enclose nothing, object ``[N]``; empty if sound.
        fault: Reason why a mask cannot be decoded, by annotation row.
    """

    bounds_xyxy: np.ndarray
    area: np.ndarray
    polygon_fault: np.ndarray
    fault: dict[int, str]


def decode_masks(split: SplitData) -> Masks | None:
    """Compute bounds and areas of all masks of a split; None if it has none."""
    raw = read_mask_texts(split.files)
    if raw is None or len(raw) != len(split.table.annotation_ids):
        return None
    count = len(raw)
    masks = Masks(np.full((count, 4), np.nan), np.full(count, np.nan), np.full(count, "", dtype=object), {})
    for row, text in enumerate(raw):
        image = int(split.image_rows[row])
        size_hw = None if image < 0 else tuple(split.table.sizes_hw[image].tolist())
        try:
            extent = mask_extent(parse_json(bytes(text)), size_hw)
        except ValueError as error:
            masks.fault[row] = str(error)
        else:
            masks.bounds_xyxy[row], masks.area[row], masks.polygon_fault[row] = extent
    return masks if np.isfinite(masks.area).any() or masks.fault or masks.polygon_fault.any() else None


def check_masks(split: SplitData, masks: Masks, found: Findings) -> None:
    """Compare masks with boxes (as read rightly), areas and images."""
    bounds, boxes = masks.bounds_xyxy, split.repaired_xywh
    # masks that cannot be decoded, or enclose nothing
    unreadable = np.array(sorted(masks.fault), dtype=np.int64)
    split.report(found, "mask_unreadable", unreadable, lambda row: f": {masks.fault[row]}")
    for kind in sorted(set(masks.polygon_fault) - {""}):
        split.report(found, kind, np.flatnonzero(masks.polygon_fault == kind), lambda _row: "")
    is_whole = masks.polygon_fault == ""
    split.report(found, "mask_empty", np.flatnonzero((masks.area == 0) & is_whole), lambda _row: "")
    is_bare = np.isnan(masks.area) & is_whole
    is_bare[unreadable] = False
    if not is_bare.all():
        split.report(found, "mask_missing", np.flatnonzero(is_bare), lambda _row: "")
    # masks outside of their image
    rows = np.flatnonzero(np.isfinite(bounds).all(axis=1) & (split.image_rows >= 0))
    limits = split.limits_hw[split.image_rows[rows]][:, ::-1].astype(np.float64)
    leaves = (bounds[rows, :2] < -OUTSIDE_PIXELS) | (bounds[rows, 2:] > limits + OUTSIDE_PIXELS)
    is_outside = leaves.any(axis=1) & (limits > 0).all(axis=1)
    split.report(found, "mask_outside_image", rows[is_outside], lambda row: f": bounds {boxes_text(bounds[row])}")
    # masks away from their box
    rows = rows[~is_outside & np.isfinite(boxes[rows]).all(axis=1) & (masks.polygon_fault[rows] == "")]
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    tolerance = np.maximum(BOX_PIXELS, BOX_SHARE * np.tile(boxes[rows, 2:], 2))
    mismatched = rows[(np.abs(corners[rows] - bounds[rows]) > tolerance).any(axis=1)]
    words = ": corners of the box {}, of the mask {}".format
    split.report(
        found,
        "mask_box_mismatch",
        mismatched,
        lambda row: words(boxes_text(corners[row]), boxes_text(bounds[row].round(1))),
    )
    _check_areas(split, masks, np.setdiff1d(rows, mismatched), found)


def _check_areas(split: SplitData, masks: Masks, rows: np.ndarray, found: Findings) -> None:
    written, area = split.table.area[rows], masks.area[rows]
    box = split.repaired_xywh[rows, 2] * split.repaired_xywh[rows, 3]
    # Many exports write the area of the box; that is a convention, not a fault.
    is_of_box = np.abs(written - box) <= 0.02 * box + 2
    least, most = np.minimum(written, area), np.maximum(written, area)
    far = (most > AREA_FACTOR * least) & (most - least > AREA_PIXELS)
    # The rules of area_wrong and area_zero have spoken of the rest.
    told = ~np.isfinite(written) | (written <= 0) | (written > 1.05 * box + 2)
    words = ": area {:g}, mask {:.0f}".format
    rows = rows[far & ~is_of_box & ~told]
    split.report(found, "mask_area_mismatch", rows, lambda row: words(split.table.area[row], masks.area[row]))


class _WithMask(msgspec.Struct, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Content(msgspec.Struct, gc=False):
    annotations: list[_WithMask]


def read_mask_texts(files: SplitFiles) -> Sequence[msgspec.Raw] | None:
    """Read the ``segmentation`` of every annotation of a COCO JSON file, unparsed; None if there are none."""
    if files.format != "coco":
        return None
    content = read_utf8(files.annotations)
    if b'"segmentation"' not in content:
        return None
    try:
        entries: list[_WithMask] = parse_json(content, _Content).annotations
    except ValueError:  # odd files, such as with NaN, go the slow way
        listed = load_json(files.annotations)["annotations"]
        return [msgspec.Raw(msgspec.json.encode(entry.get("segmentation"))) for entry in listed]
    return [entry.segmentation for entry in entries]
