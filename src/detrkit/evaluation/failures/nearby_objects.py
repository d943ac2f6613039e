"""Boxes of one image that lie near each other.

Shapes: n boxes, P pairs of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from detrkit.evaluation.matching import box_iou, partners

REACH = 0.25
"""Boxes are near when they touch after each has grown by this share of its own size on every side."""


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
