"""Bounds and area of the ``segmentation`` of a COCO annotation: polygons, or a run-length encoding (RLE)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from detrkit.classes import SizeHW

FARTHEST = 1e9
FLAT_PIXELS = 1e-3
_MOST_DIGITS = 6
"""Above this place a digit would count more than 2**35 pixels."""


class MaskExtent(NamedTuple):
    """A mask in numbers.

    Args:
        bounds_xyxy: Bounds in pixels, float64 ``[4]``; NaN where nothing is enclosed.
        area: Pixels, of polygons by the shoelace formula; NaN where there is none.
        fault: Kind of fault of its polygons, empty if sound.
    """

    bounds_xyxy: np.ndarray
    area: float
    fault: str = ""


NO_MASK = MaskExtent(np.full(4, np.nan), np.nan)


def mask_extent(content: Any, size_hw: SizeHW | None = None) -> MaskExtent:
    """Return the bounds and the area of a mask; of none where ``content`` is empty, as in exports without masks.

    Args:
        content: Value of ``segmentation``, parsed.
        size_hw: Pixels of the image, which an RLE must have; not compared if None.

    Raises:
        ValueError: It is neither, or cannot be decoded.
    """
    if not content:
        return NO_MASK
    try:
        if isinstance(content, dict):
            return _rle_extent(content, size_hw)
        if isinstance(content, list):
            return _polygon_extent(content)
    except (TypeError, KeyError, IndexError, RuntimeError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    raise ValueError(f"holds a {type(content).__name__}, expected polygons or an RLE")


def _polygon_extent(content: list[Any]) -> MaskExtent:
    if isinstance(content[0], (int, float)):
        content = [content]  # one polygon, not in a list of its own
    parts = [np.array(part, dtype=np.float64).reshape(-1) for part in content]
    if any(len(part) % 2 for part in parts):
        raise ValueError("a polygon has an odd number of coordinates")
    whole = [part.reshape(-1, 2) for part in parts if len(part) >= 6]
    fault = "mask_polygon_short" if len(whole) < len(parts) else ""
    if not whole:
        return NO_MASK._replace(fault=fault)
    points = np.concatenate(whole)
    if not (np.abs(points) < FARTHEST).all():
        raise ValueError("a polygon has coordinates that are no numbers, or no pixels")
    area = sum(_shoelace(part) for part in whole)
    if area < FLAT_PIXELS:
        fault = fault or "mask_polygon_flat"
    return MaskExtent(np.concatenate([points.min(axis=0), points.max(axis=0)]), area, fault)


def _rle_extent(content: dict[str, Any], size_hw: SizeHW | None) -> MaskExtent:
    from hotcoco import mask as mask_functions

    height, width = (int(side) for side in content["size"])
    counts = content["counts"]
    if size_hw is not None and all(size_hw) and (height, width) != tuple(size_hw):
        raise ValueError(f"RLE of {width} x {height} pixels on an image of {size_hw[1]} x {size_hw[0]}")
    # cut off, a compressed text still decodes to a smaller mask
    total = sum(counts) if isinstance(counts, list) else int(_run_lengths(counts).sum())
    if total != height * width:
        raise ValueError(f"RLE counts {total} pixels, expected {height} x {width}; perhaps it is cut off")
    if isinstance(counts, list):
        rle = mask_functions.fr_py_objects({"size": [height, width], "counts": counts}, height, width)
    else:
        rle = {"size": [height, width], "counts": counts}
    area = float(np.ravel(mask_functions.area(rle))[0])
    x, y, box_width, box_height = np.ravel(mask_functions.to_bbox(rle)).tolist()
    if not (box_width > 0 and box_height > 0):
        return NO_MASK._replace(area=area)
    return MaskExtent(np.array([x, y, x + box_width, y + box_height]), area)


def _run_lengths(counts: str | bytes) -> np.ndarray:
    """Decode the compressed counts of an RLE, int64.

    Each is given as its difference from the last but one, in digits of 5 bits, the least first.

    Raises:
        ValueError: It ends within a number, has another sign, or a count below 0.
    """
    text = counts.encode() if isinstance(counts, str) else counts
    digits = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits & 32 == 0)
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or ends[-1:].tolist() != [len(digits) - 1]:
        raise ValueError("the counts of its RLE are cut off or no RLE")
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if places.max() > _MOST_DIGITS:
        raise ValueError("the counts of its RLE are too large")
    values = np.add.reduceat((digits & 31) << (5 * places), starts)
    values -= np.where(digits[ends] & 16, 1 << (5 * places[ends] + 5), 0)
    for start in (1, 2):
        values[start::2] = np.cumsum(values[start::2])
    if values.min() < 0:
        raise ValueError("the counts of its RLE fall below 0")
    return values


def _shoelace(points: np.ndarray) -> float:
    x, y = points[:, 0], points[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
