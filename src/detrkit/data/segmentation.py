"""Masks as annotation files have them: polygons, run-length encodings (RLE), and panoptic PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from detrkit.classes import SizeHW
from detrkit.errors import ImageError
from detrkit.masks import encode_ids

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


def mask_rle(content: Any, size_hw: SizeHW) -> dict[str, Any]:
    """Return a mask of which :func:`mask_extent` finds bounds as compressed RLE, to the pixel that of pycocotools.

    Args:
        content: Value of ``segmentation``, parsed.
        size_hw: Pixels of the image, in which polygons are drawn.
    """
    from hotcoco import mask as mask_functions

    if isinstance(content, dict):
        rle: dict[str, Any] = mask_functions.fr_py_objects(content, *content["size"])
        return rle
    whole = [part.tolist() for part in _polygons(content) if len(part) >= 6]
    merged: dict[str, Any] = mask_functions.merge(mask_functions.fr_py_objects(whole, *size_hw))
    return merged


def _polygons(content: list[Any]) -> list[np.ndarray]:
    if isinstance(content[0], (int, float)):
        content = [content]  # one polygon, not in a list of its own
    return [np.array(part, dtype=np.float64).reshape(-1) for part in content]


def _polygon_extent(content: list[Any]) -> MaskExtent:
    parts = _polygons(content)
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
    return abs(float(x[:-1] @ y[1:] - y[:-1] @ x[1:] + x[-1] * y[0] - y[-1] * x[0])) / 2


class Segments(NamedTuple):
    """The segments of a PNG: ids, pixels and bounds (x, y, width, height) of each, and height and width."""

    ids: np.ndarray
    pixels: np.ndarray
    boxes_xywh: np.ndarray
    size_hw: tuple[int, int]


def read_id_map(path: Path) -> np.ndarray:
    """Read the segment id of every pixel of a PNG file of COCO panoptic, int32 ``[H, W]``; 0 is none."""
    with Image.open(path) as image:
        colors = np.asarray(image.convert("RGBA"))
    return (colors.view("<u4")[..., 0] & 0xFFFFFF).astype(np.int32)


def read_ids_of(path: Path, size_hw: SizeHW) -> np.ndarray:
    """Read the segment id of every pixel of an image; see :func:`read_id_map`.

    Raises:
        ImageError: The PNG file cannot be read, or has another size.
    """
    try:
        ids = read_id_map(path)
    except Exception as error:  # Pillow's plugins raise nearly anything
        raise ImageError(f"{path}: the panoptic PNG cannot be read: {error}; restore it") from error
    if ids.shape != tuple(size_hw):
        raise ImageError(
            f"{path}: the panoptic PNG has height and width {ids.shape}, its image has {tuple(size_hw)}; segments "
            "would lie on the wrong pixels"
        )
    return ids


def read_segments(path: Path) -> Segments:
    """Measure the segments of a PNG file; see :func:`measure_segments`."""
    return measure_segments(read_id_map(path))


def measure_segments(ids: np.ndarray) -> Segments:
    """Return ids, pixel counts and bounds of the segments of an id map, int32 ``[H, W]``."""
    from hotcoco import mask as mask_functions

    found = encode_ids(ids)
    found.pop(0, None)
    encoded = list(found.values())
    pixels = np.asarray(mask_functions.area(encoded) if encoded else [], dtype=np.int64)
    boxes = np.asarray(mask_functions.to_bbox(encoded) if encoded else [], dtype=np.int64).reshape(-1, 4)
    return Segments(np.array(list(found), dtype=np.int32), pixels, boxes, ids.shape)
