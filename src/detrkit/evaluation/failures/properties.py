"""Properties of boxes that may go with failure, from the annotations and from the pixels.

Shapes: n boxes, P pairs of them, H x W pixels of an image.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detrkit.evaluation.failures.entries import side_shares
from detrkit.evaluation.matching import box_iou, partners
from detrkit.evaluation.truth import CocoTruth

PIXEL_PROPERTIES = ("brightness", "contrast", "sharpness")

REACH = 0.25
"""Boxes are near when they touch after each has grown by this share of its own size on every side."""

_BORDER_SHARE = 0.005  # of the image's side, within which a box touches the border; at least a pixel
_NUM_BINS = 5
_GRAY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Property:
    """A property of boxes, divided into bins.

    Args:
        name: Name of the property.
        bins: Bin of each box, -1 where the property is unknown, int64 ``[n]``.
        labels: Labels of the bins, such as "under 23 px".
        sampled: Known for a sample of the images only.
    """

    name: str
    bins: np.ndarray
    labels: Sequence[str]
    sampled: bool = False


class NearPairs(NamedTuple):
    """Pairs of near boxes, each pair once.

    first: int64 ``[P]``. second: int64 ``[P]``, greater than ``first``. iou: float64 ``[P]``; 0 where they are
    near without overlap.
    """

    first: np.ndarray
    second: np.ndarray
    iou: np.ndarray


def near_pairs(image_rows: np.ndarray, boxes_xywh: np.ndarray) -> NearPairs:
    """Find pairs of near boxes.

    Args:
        image_rows: Image of each box, ascending, int64 ``[n]``.
        boxes_xywh: float64 ``[n, 4]``.
    """
    low = boxes_xywh[:, :2] - REACH * boxes_xywh[:, 2:]
    high = boxes_xywh[:, :2] + (1 + REACH) * boxes_xywh[:, 2:]
    later = np.searchsorted(image_rows, image_rows, side="right") - np.arange(len(image_rows)) - 1
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for first, places in partners(later):
        second = first + 1 + places
        near = ((low[first] < high[second]) & (low[second] < high[first])).all(axis=1)
        first, second = first[near], second[near]
        parts.append((first, second, box_iou(boxes_xywh[first], boxes_xywh[second])))
    return NearPairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def box_properties(
    truth: CocoTruth, image_rows: np.ndarray, class_ids: np.ndarray, boxes_xywh: np.ndarray, counted: np.ndarray
) -> list[Property]:
    """Return size, shape, place and class frequency.

    Args:
        truth: The annotations.
        image_rows: Image of each box, int64 ``[n]``.
        class_ids: int64 ``[n]``.
        boxes_xywh: float64 ``[n, 4]``.
        counted: Annotations that class frequency counts, bool ``[N]``.
    """
    width, height = np.maximum(boxes_xywh[:, 2], 1e-6), np.maximum(boxes_xywh[:, 3], 1e-6)
    frequency = np.bincount(truth.class_ids[counted], minlength=len(truth.class_map))[class_ids]
    shares = side_shares(truth, image_rows, boxes_xywh)
    border = at_border(truth, image_rows, boxes_xywh).astype(np.int64)
    share = _in_quantiles("share of the image's side", 100 * shares, "%")
    one_size = (truth.sizes_hw == truth.sizes_hw[:1]).all()  # then it says the same as the size in pixels
    return [
        _in_quantiles("size", np.sqrt(width * height), "px"),
        *([] if one_size else [share]),
        _in_quantiles("width / height", width / height),
        Property("truncation", border, ("inside the image", "cut by the border")),
        _in_quantiles("class frequency", frequency.astype(np.float64), "objects"),
    ]


def crowding_properties(near: NearPairs, objects: np.ndarray, counted: np.ndarray) -> list[Property]:
    """Return how crowded objects are: their neighbours, and how much the nearest covers.

    Args:
        near: Near annotations.
        objects: Rows of the annotations that are asked about, int64 ``[n]``.
        counted: Annotations that count as neighbours, bool ``[N]``.
    """
    both = counted[near.first] & counted[near.second]
    first, second, iou = near.first[both], near.second[both], near.iou[both]
    overlap = np.zeros(len(counted))
    np.maximum.at(overlap, np.r_[first, second], np.r_[iou, iou])
    neighbours = np.bincount(np.r_[first, second], minlength=len(counted))
    number = np.searchsorted((1, 3, 6), neighbours[objects], side="right")
    covered = np.searchsorted((1e-9, 0.1, 0.3), overlap[objects], side="right")
    by_number = ("none near", "1 or 2 near", "3 to 5 near", "6 or more near")
    by_overlap = ("no overlap", "IoU under 0.1", "IoU 0.1 to 0.3", "IoU over 0.3")
    return [
        Property("near objects", number, by_number),
        Property("overlap with another object", covered, by_overlap),
    ]


def pixel_properties(values: np.ndarray) -> list[Property]:
    """Return properties from :func:`measure_pixels` of each box, NaN where not measured, float64 ``[n, 3]``."""
    return [
        dataclasses.replace(_in_quantiles(name, values[:, number]), sampled=True)
        for number, name in enumerate(PIXEL_PROPERTIES)
    ]


def at_border(truth: CocoTruth, image_rows: np.ndarray, boxes_xywh: np.ndarray) -> np.ndarray:
    """Return boxes that touch an edge of their image, and so are likely cut off by it, bool ``[n]``."""
    size_wh = truth.sizes_hw[image_rows][:, ::-1].astype(np.float64)
    near = np.maximum(1, _BORDER_SHARE * size_wh)
    low, high = boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]
    touches: np.ndarray = ((low <= near) | ((high >= size_wh - near) & (size_wh > 0))).any(axis=1)
    return touches


def measure_pixels(image: np.ndarray, boxes_xywh: np.ndarray) -> np.ndarray:
    """Measure brightness (mean, 0 to 255), contrast (deviation) and sharpness of each box, float64 ``[n, 3]``.

    Sharpness is the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000), on a scale of log10. Boxes with
    less than 3 pixels a side inside the image have NaN.

    Args:
        image: uint8 ``[H, W, 3]``.
        boxes_xywh: float64 ``[n, 4]``.
    """
    gray = image.astype(np.float32) @ _GRAY
    height, width = gray.shape
    values = np.full((len(boxes_xywh), len(PIXEL_PROPERTIES)), np.nan)
    low = np.floor(boxes_xywh[:, :2]).clip(0, (width, height)).astype(int)
    high = np.ceil(boxes_xywh[:, :2] + boxes_xywh[:, 2:]).clip(0, (width, height)).astype(int)
    for row, ((left, top), (right, bottom)) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if right - left < 3 or bottom - top < 3:
            continue
        box = gray[top:bottom, left:right]
        edges = box[:-2, 1:-1] + box[2:, 1:-1] + box[1:-1, :-2] + box[1:-1, 2:] - 4 * box[1:-1, 1:-1]
        values[row] = box.mean(), box.std(), np.log10(edges.var() + 1)
    return values


def _in_quantiles(name: str, values: np.ndarray, unit: str = "") -> Property:
    """Divide values into bins of about equally many boxes."""
    known = np.isfinite(values)
    if not known.any():
        return Property(name, np.full(len(values), -1), ())
    inner = np.quantile(values[known], np.arange(1, _NUM_BINS) / _NUM_BINS)
    edges = np.unique([float(f"{edge:.3g}") for edge in inner])
    bins = np.where(known, np.searchsorted(edges, values, side="right"), -1)
    after = f" {unit}" if unit else ""
    labels = [f"under {edges[0]:g}{after}"]
    labels += [f"{low:g} to {high:g}{after}" for low, high in itertools.pairwise(edges)]
    return Property(name, bins, (*labels, f"{edges[-1]:g}{after} and more"))
