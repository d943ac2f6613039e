"""The way boxes are written: corner and size, two corners, centre and size; in pixels or normalised.

The numbers of a format that was mixed up are still numbers. What gives them away is where the boxes lie if they
are taken for what the format says, and where they lie if they are taken for something else: of true boxes nearly
none leave their image, of misread ones many do, and by far.

Shapes: N boxes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from detrkit.data.formats import BoxFormat

OTHERS: Mapping[BoxFormat, tuple[BoxFormat, ...]] = {
    "xywh": ("xyxy", "cxcywh"),
    "xyxy": ("xywh", "cxcywh"),
    "cxcywh": ("xyxy", "xywh"),
}
EDGE_PIXELS = 2.0
"""Boxes leave their image by so much through rounding and counting from 1."""
GROSS_SHARE = 0.05
"""A box that leaves its image by more than this share of the side was not drawn there."""
MANY_BOXES, FEW_BOXES = 20, 4
LEAST_GROSS: Mapping[BoxFormat, float] = {"xyxy": 0.1, "xywh": 0.1, "cxcywh": 0.02}
"""Share of boxes that must lie grossly wrong for a whole split to be taken for another format. About two thirds
of corners misread as sizes do; of centres misread as corners only the boxes near two of the four edges."""
LEAST_LEGAL = 0.95
AREA_RULE = 0.9
"""Share of areas that are those of their box, from which on that is the rule of the set."""
MASK_PIXELS = 2.0
LEAST_SIDE = 16
NORMALISED_MAX = 1.01
MOST_IN_PIXELS = 0.9
"""Share of boxes that cannot be shares of the image, from which on none of the split are."""


def judge(
    boxes_xywh: np.ndarray,
    limits_hw: np.ndarray,
    images: np.ndarray,
    native: BoxFormat,
    is_normalised: bool,
    area: np.ndarray,
    mask_xyxy: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find boxes that are written another way than their format has it.

    Args:
        boxes_xywh: Boxes as read, finite, float64 ``[N, 4]``.
        limits_hw: Size of the image of each box, at least 1, ``[N, 2]``.
        images: Image row of each box ``[N]``.
        native: Box format of the annotation format.
        is_normalised: Whether the annotation format writes 0 to 1.
        area: Annotated areas, NaN where there is none, ``[N]``.
        mask_xyxy: Bounds of the mask of each box, NaN where there is none, ``[N, 4]``; None if there are no masks.

    Returns:
        The boxes in pixels, read rightly, float64 ``[N, 4]``, and the kind of fault of those that are not written
        as the format has it, object ``[N]``, empty elsewhere.
    """
    extent = limits_hw[:, [1, 0, 1, 0]].astype(np.float64)
    numbers = from_xywh(boxes_xywh, native)
    fault = np.full(len(numbers), "", dtype=object)
    if is_normalised:
        # far outside, but inside and of a pixel or more if they were pixels: else a number is wrong, not its unit
        shares = numbers / extent
        far = looks_in_pixels(numbers, extent)
        other_unit = _is_legal(to_xywh(shares, native), extent) & far
        other_unit &= (to_xywh(shares, native)[:, 2:] >= 1).all(axis=1)
        other_unit |= far.mean() >= MOST_IN_PIXELS and len(far) >= FEW_BOXES
    else:
        shares = numbers * extent
        other_unit = looks_normalised(numbers, extent)
    numbers = np.where(other_unit[:, None], shares, numbers)
    fault[other_unit] = "box_in_pixels" if is_normalised else "box_normalised"
    xywh = boxes_xywh.copy()
    for rows in (np.flatnonzero(~other_unit), np.flatnonzero(other_unit)):
        masks = None if mask_xyxy is None else mask_xyxy[rows]
        formats = _formats(numbers[rows], extent[rows], images[rows], native, area[rows], masks)
        for box_format in ("xywh", "xyxy", "cxcywh"):
            chosen = rows[formats == box_format]
            xywh[chosen] = to_xywh(numbers[chosen], box_format)
            if box_format != native:
                fault[chosen] = np.where(fault[chosen] == "", f"box_{box_format}", fault[chosen])
        same = rows[(formats == native) & ~other_unit[rows]]
        xywh[same] = boxes_xywh[same]  # to the last bit
    return xywh, fault


def from_xywh(xywh: np.ndarray, box_format: BoxFormat) -> np.ndarray:
    """Return the numbers that a format writes for boxes ``[N, 4]``."""
    if box_format == "xyxy":
        return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    if box_format == "cxcywh":
        return np.concatenate([xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]], axis=1)
    return xywh


def to_xywh(numbers: np.ndarray, box_format: BoxFormat) -> np.ndarray:
    """Return corner and size of boxes that are written in some format, ``[N, 4]``."""
    if box_format == "xyxy":
        return np.concatenate([numbers[:, :2], numbers[:, 2:] - numbers[:, :2]], axis=1)
    if box_format == "cxcywh":
        return np.concatenate([numbers[:, :2] - numbers[:, 2:] / 2, numbers[:, 2:]], axis=1)
    return numbers


def overhang(xywh: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Return by how many pixels boxes leave their image on each side, 0 where they do not, ``[N, 4]``.

    Args:
        xywh: Boxes ``[N, 4]``.
        extent: Width, height, width, height of the image of each ``[N, 4]``.
    """
    out_by = np.concatenate([-xywh[:, :2], xywh[:, :2] + xywh[:, 2:] - extent[:, :2]], axis=1)
    return np.asarray(np.maximum(out_by, 0))


def looks_normalised(numbers: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Find boxes of which all numbers lie between 0 and 1, on images where that is no box, bool ``[N]``."""
    small = np.asarray((numbers <= NORMALISED_MAX).all(axis=1) & (numbers >= 1 - NORMALISED_MAX).all(axis=1))
    small &= (numbers[:, 2:] > 0).all(axis=1) & (extent >= LEAST_SIDE).all(axis=1)
    # [0, 0, 1, 1] is the whole image where others are normalised too, and one pixel where they are not.
    whole = (numbers == np.rint(numbers)).all(axis=1)
    if small.sum() - (small & whole).sum() < 0.5 * len(numbers):
        small &= ~whole
    return small


def looks_in_pixels(numbers: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Find boxes with a number that is no share of the image, of numbers that were scaled by it, bool ``[N]``."""
    return np.asarray((numbers / extent > 1.5).any(axis=1))


def _formats(
    numbers: np.ndarray,
    extent: np.ndarray,
    images: np.ndarray,
    native: BoxFormat,
    area: np.ndarray,
    mask_xyxy: np.ndarray | None,
) -> np.ndarray:
    """Return the format of each box, object ``[N]``."""
    formats = np.full(len(numbers), native, dtype=object)
    if not len(numbers):
        return formats
    whole = box_format_of(numbers, extent, native)
    if whole != native:
        formats[:] = whole
    elif native == "xywh":
        formats[_written_as_corners(numbers, extent, images, area)] = "xyxy"
    elif native == "xyxy":  # a corner below or right of the other, which as a size would fit
        disorder = (numbers[:, 2:] < numbers[:, :2]).any(axis=1) & (numbers[:, 2:] > 0).all(axis=1)
        several = disorder & (np.bincount(images, disorder, images.max() + 1) >= 2)[images]
        # where all of them are below and right of the other, these are corners in the wrong order as well
        in_one = disorder & ~(numbers[:, 2:] < numbers[:, :2]).all(axis=1)
        several &= (np.bincount(images, in_one, images.max() + 1) >= 1)[images]
        # one file is written in one way: a box that no size fits says that corners were exchanged
        several &= (np.bincount(images, ~_is_legal(numbers, extent), images.max() + 1) == 0)[images]
        formats[several] = "xywh"
    if mask_xyxy is not None:
        _correct_by_masks(formats, numbers, native, mask_xyxy)
    return formats


def box_format_of(numbers: np.ndarray, extent: np.ndarray, native: BoxFormat) -> BoxFormat:
    """Return how nearly all boxes are written, if it is not as the annotation format has it."""
    count = len(numbers)
    if count < FEW_BOXES:
        return native
    gross = _is_gross(to_xywh(numbers, native), extent)
    best, best_legal = native, LEAST_LEGAL
    for other in OTHERS[native]:
        legal = float(_is_legal(to_xywh(numbers, other), extent).mean())
        enough = LEAST_GROSS[other] if count >= MANY_BOXES else 0.25
        if gross.mean() >= enough and gross.sum() >= 2 and legal >= best_legal and 1 - legal <= gross.mean() / 5:
            best, best_legal = other, legal
    return best


def _written_as_corners(
    numbers: np.ndarray, extent: np.ndarray, images: np.ndarray, area: np.ndarray
) -> np.ndarray:
    """Find boxes of an otherwise good set that leave their image as sizes, but fit as corners, bool ``[N]``.

    A box with two corners cannot have a greater area than lies between them, nor does one that was written rightly
    have less than its own where areas are those of boxes; so the area tells, where one is written.
    """
    corners = to_xywh(numbers, "xyxy")
    fits = _is_legal(corners, extent) & (numbers[:, :2] >= 0).all(axis=1)
    area_between, area_written = corners[:, 2] * corners[:, 3], numbers[:, 2] * numbers[:, 3]
    known = np.isfinite(area) & (area > 0)
    denied = known & ((area > 1.05 * area_between + 4) | (np.abs(area - area_written) <= 0.01 * area_written))
    fits &= ~denied
    single = fits & _is_gross(numbers, extent)
    if known.sum() >= FEW_BOXES:
        of_written, of_corners = (np.abs(area - other) <= 0.01 * other for other in (area_written, area_between))
        # Where areas are those of boxes, as in most sets without masks, they tell of every box how it is meant.
        if (of_written | of_corners)[known].mean() >= AREA_RULE:
            single |= fits & known & of_corners & ~of_written
    # Of an image whose boxes all fit as corners, half of them only as corners, the rest are corners too.
    size = images.max() + 1
    of_image = np.bincount(images, minlength=size)
    all_fit = np.bincount(images, fits, size) == of_image
    half_single = np.bincount(images, single, size) * 2 >= of_image
    return np.asarray(single | (fits & (all_fit & half_single & (of_image >= 3))[images]))


def _correct_by_masks(formats: np.ndarray, numbers: np.ndarray, native: BoxFormat, mask_xyxy: np.ndarray) -> None:
    """Take the format that a mask fits alone, whatever else was guessed."""
    distance = {
        box_format: np.abs(from_xywh(to_xywh(numbers, box_format), "xyxy") - mask_xyxy).max(axis=1)
        for box_format in ("xywh", "xyxy", "cxcywh")
    }
    formats[distance[native] <= MASK_PIXELS] = native
    for other in OTHERS[native]:
        fits = (distance[other] <= MASK_PIXELS) & (distance[native] > 2 * MASK_PIXELS)
        formats[fits] = other


def _is_legal(xywh: np.ndarray, extent: np.ndarray) -> np.ndarray:
    tolerance = np.maximum(EDGE_PIXELS, 0.01 * extent)
    return np.asarray((xywh[:, 2:] > 0).all(axis=1) & (overhang(xywh, extent) <= tolerance).all(axis=1))


def _is_gross(xywh: np.ndarray, extent: np.ndarray) -> np.ndarray:
    tolerance = np.maximum(EDGE_PIXELS, GROSS_SHARE * extent)
    return np.asarray((overhang(xywh, extent) > tolerance).any(axis=1) | (xywh[:, 2:] < 0).any(axis=1))
