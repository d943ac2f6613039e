"""Boxes of one image that lie near each other.

Shapes: n boxes, P pairs of them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

REACH = 0.25
"""Boxes are near when they touch after each has grown by this share of its own size on every side."""

_MOST_PAIRS = 1_000_000


@dataclasses.dataclass(frozen=True)
class NearPairs:
    """Pairs of near boxes, each pair once.

    Args:
        first: int64 ``[P]``.
        second: int64 ``[P]``, greater than ``first``.
        iou: float64 ``[P]``; 0 where they are near without overlap.
    """

    first: np.ndarray
    second: np.ndarray
    iou: np.ndarray


def near_pairs(image_rows: np.ndarray, boxes_xywh: np.ndarray) -> NearPairs:
    """Pairs of near boxes.

    Args:
        image_rows: Image of each box, ascending, int64 ``[n]``.
        boxes_xywh: float64 ``[n, 4]``.
    """
    low = boxes_xywh[:, :2] - REACH * boxes_xywh[:, 2:]
    high = boxes_xywh[:, :2] + (1 + REACH) * boxes_xywh[:, 2:]
    later = np.searchsorted(image_rows, image_rows, side="right") - np.arange(len(image_rows)) - 1
    ends = np.cumsum(later)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    start = 0
    while start < len(image_rows):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _MOST_PAIRS, side="right")))
        first = np.repeat(np.arange(start, stop), later[start:stop])
        begin = np.repeat(ends[start:stop] - later[start:stop] - done, later[start:stop])
        second = first + 1 + np.arange(len(first)) - begin
        near = ((low[first] < high[second]) & (low[second] < high[first])).all(axis=1)
        first, second = first[near], second[near]
        parts.append((first, second, box_iou(boxes_xywh[first], boxes_xywh[second])))
        start = stop
    return NearPairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def box_iou(first_xywh: np.ndarray, second_xywh: np.ndarray) -> np.ndarray:
    """IoU of boxes ``[P, 4]`` with each other, row by row."""
    low = np.maximum(first_xywh[:, :2], second_xywh[:, :2])
    high = np.minimum(first_xywh[:, :2] + first_xywh[:, 2:], second_xywh[:, :2] + second_xywh[:, 2:])
    inner = np.maximum(high - low, 0).prod(axis=1)
    union = first_xywh[:, 2:].prod(axis=1) + second_xywh[:, 2:].prod(axis=1) - inner
    iou: np.ndarray = np.divide(inner, union, out=np.zeros_like(inner), where=inner > 0)
    return iou
