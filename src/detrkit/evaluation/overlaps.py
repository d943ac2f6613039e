"""IoU of correct detections with their objects.

Shapes: D detections, N annotations, C classes, B bins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from detrkit.classes import SIZE_LIMITS
from detrkit.evaluation.coco import UNDEFINED
from detrkit.evaluation.matching import Matches

_EDGES = np.linspace(0.5, 1, 21)


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """IoU of correct detections (at IoU 0.5) with their objects.

    Args:
        mean: Mean of all; ``UNDEFINED`` where nothing was found.
        histogram: int64 ``[B]``.
        edges: Edges of its bins, 0.5 to 1, float64 ``[B + 1]``.
        per_class: Mean by class id, float64 ``[C]``; ``UNDEFINED`` where nothing was found.
        by_size: Mean by size of the object: ``small``, ``medium``, ``large``; ``UNDEFINED`` likewise.
    """

    mean: float
    histogram: np.ndarray
    edges: np.ndarray
    per_class: np.ndarray
    by_size: Mapping[str, float]


def overlaps(matches: Matches) -> Overlaps:
    """Measure how well boxes fit.

    Args:
        matches: Matches of detections and objects.
    """
    right = np.flatnonzero(matches.correct[0])
    objects = matches.matched[0, right]
    iou = np.minimum(overlap_of(matches, right, objects), 1.0)
    class_ids = matches.truth.class_ids[objects]
    classes = len(matches.truth.class_map)
    counts = np.bincount(class_ids, minlength=classes)
    sums = np.bincount(class_ids, weights=iou, minlength=classes)
    per_class = np.where(counts > 0, sums / np.maximum(counts, 1), UNDEFINED)
    histogram, area = np.histogram(iou, _EDGES)[0].astype(np.int64), matches.truth.area[objects]
    sizes = {name: (area >= least) & (area < limit) for name, (least, limit) in SIZE_LIMITS.items()}
    by_size = {name: _mean(iou[own]) for name, own in sizes.items()}
    return Overlaps(_mean(iou), histogram, _EDGES, per_class, by_size)


def overlap_of(matches: Matches, detections: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Return IoU of some detections with some annotations, 0 where it is under ``LEAST_IOU``.

    Args:
        matches: Their matches.
        detections: Rows, int ``[K]``.
        objects: Rows of the truth, int ``[K]``; -1 for none.
    """
    pairs, annotations = matches.pairs, len(matches.truth.iscrowd)
    if not len(pairs.iou):
        return np.zeros(len(detections))
    keys = pairs.detections * annotations + pairs.objects  # ascending, as pairs are made
    wanted = np.asarray(detections, np.int64) * annotations + objects
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found = (keys[places] == wanted) & (np.asarray(objects) >= 0)
    overlap: np.ndarray = np.where(found, pairs.iou[places], 0.0)
    return overlap


def matched_iou(matches: Matches) -> np.ndarray:
    """Return IoU of each detection with what it found at 0.5, NaN where it found nothing, float64 ``[D]``."""
    matched = matches.matched[0]
    iou: np.ndarray = np.where(matched >= 0, overlap_of(matches, np.arange(len(matched)), matched), np.nan)
    return iou


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else UNDEFINED
