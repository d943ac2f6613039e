"""AP of a set of images in which each counts as often as its weight says: the core of every resampling.

A resample of whole images is the same set with a whole number per image, so matching, which never crosses images,
is done once. What is left of COCO's ``accumulate`` is sums by rank. Precision rises at correct detections only, so
the curve is needed at those alone, and all resamples of a chunk go through each step together.

Shapes: I measured images, S resamples, C classes, T IoU thresholds, K detections of one class that are correct at
some threshold, J of them at one threshold.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from scipy import sparse

from detrkit.evaluation.matching import IOU_THRESHOLDS, Matches

MEASURES = ("AP", "AP50", "AP75")

RECALLS = np.linspace(0.0, 1.0, 101)
"""pycocotools' own recall thresholds, to the last bit."""

_AP50, _AP75 = 0, 5  # rows of IOU_THRESHOLDS


@dataclasses.dataclass(frozen=True)
class _Ranked:
    """What one class's precision and recall follow from.

    Args:
        images: Column of the weights for each of the K detections, best first, int64 ``[K]``.
        counted: Detections of each image from the last of the K (not included) to this one, sparse ``[K, I]``.
        correct: For each threshold, which of the K are correct, T arrays of int64 ``[J]``.
        ignored: As ``counted``, of those that lie in crowd regions, T entries; None where there are none.
    """

    images: np.ndarray
    counted: sparse.csr_array
    correct: tuple[np.ndarray, ...]
    ignored: tuple[sparse.csr_array | None, ...]


class WeightedAP:
    """AP, AP50 and AP75 of each class for any weights of the images.

    For whole weights the values are those of COCO's evaluation of a set with the images repeated so often, copies
    next to each other; only where an image holds detections of one class with equal scores does their order differ
    (copies of an image would take turns).

    Args:
        matches: Detections and objects of the images.
    """

    def __init__(self, matches: Matches):
        self.images = len(matches.rows)
        self.classes = len(matches.truth.class_map)
        rows = np.flatnonzero(matches.measured)
        columns = np.searchsorted(matches.rows, matches.truth.image_rows[rows])
        self._objects = count_pairs(matches.truth.class_ids[rows], columns, (self.classes, self.images))
        order = np.lexsort((-matches.found.scores, matches.found.class_ids))  # stable: equal scores by image
        ends = np.searchsorted(matches.found.class_ids[order], np.arange(self.classes + 1))
        self._ranked = [_rank(matches, order[start:stop]) for start, stop in itertools.pairwise(ends)]

    def images_by_class(self) -> np.ndarray:
        """Return images that hold an object of each class, int64 ``[C]``."""
        return np.diff(self._objects.indptr)

    def measure(self, weights: np.ndarray) -> np.ndarray:
        """Return :data:`MEASURES` of each class, float64 ``[3, C, S]``; NaN without an object in the images.

        Args:
            weights: How often each image counts, float64 ``[I, S]``.
        """
        objects = self._objects @ weights
        values = np.full((len(MEASURES), self.classes, weights.shape[1]), np.nan)
        for class_id, ranked in enumerate(self._ranked):
            if objects[class_id].any():
                values[:, class_id] = _class_ap(ranked, weights, objects[class_id])
        return values


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Return means of ``[..., C, S]`` over the classes with objects, as COCO's, ``[..., S]``; NaN if none."""
    defined = ~np.isnan(values)
    counts = defined.sum(-2)
    sums = np.where(defined, values, 0.0).sum(-2)
    mean: np.ndarray = np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    return mean


def _rank(matches: Matches, rows: np.ndarray) -> _Ranked:
    """Return one class's detections, given best first."""
    correct, ignored = matches.correct[:, rows], matches.ignored[:, rows]
    kept = np.flatnonzero(correct.any(0))
    images = np.searchsorted(matches.rows, matches.found.image_rows[rows])
    following = np.searchsorted(kept, np.arange(len(rows)))  # the first of the kept at or after each detection
    before = following < len(kept)
    shape = (len(kept), len(matches.rows))
    return _Ranked(
        images=images[kept],
        counted=count_pairs(following[before], images[before], shape),
        correct=tuple(np.flatnonzero(row[kept]) for row in correct),
        ignored=tuple(
            count_pairs(following[row & before], images[row & before], shape) if row.any() else None
            for row in ignored
        ),
    )


def count_pairs(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """Count how often each pair comes, as a sparse matrix."""
    keys, counts = np.unique(rows * shape[1] + columns, return_counts=True)
    first = np.searchsorted(keys, np.arange(shape[0] + 1) * shape[1])
    columns_of_keys = keys % max(shape[1], 1)
    return sparse.csr_array((counts.astype(np.float64), columns_of_keys, first), shape=shape)  # type: ignore[no-untyped-call]


def _class_ap(ranked: _Ranked, weights: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Return AP, AP50, AP75 of one class, ``[3, S]``."""
    values = np.zeros((len(IOU_THRESHOLDS), weights.shape[1]))
    if len(ranked.images):
        own = weights[ranked.images]
        counted = np.cumsum(ranked.counted @ weights, axis=0)
        for number, (correct, ignored) in enumerate(zip(ranked.correct, ranked.ignored, strict=True)):
            if len(correct):
                seen = counted if ignored is None else counted - np.cumsum(ignored @ weights, axis=0)
                values[number] = _interpolated_ap(own[correct], seen[correct], objects)
    result: np.ndarray = np.stack([values.mean(0), values[_AP50], values[_AP75]])
    result[:, objects == 0] = np.nan
    return result


def _interpolated_ap(own: np.ndarray, seen: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Return mean precision at the 101 recall thresholds, ``[S]``.

    Args:
        own: Weights of the correct detections, best first, ``[J, S]``; overwritten.
        seen: Weights of all detections down to each of them, ``[J, S]``; overwritten.
        objects: Weights of the objects, ``[S]``.
    """
    found = np.cumsum(own, axis=0, out=own)
    # A correct detection of weight 0 only repeats a point of the curve, or comes before its first (0 / 0).
    precision = np.divide(found, np.maximum(seen, 1.0, out=seen), out=seen)
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = np.divide(found, np.maximum(objects, 1.0), out=found)
    reached = recalls_reached(recall)
    newly = np.diff(reached, axis=0, prepend=0.0)
    newly[0] += 1.0  # recall 0 is reached by the first detection of all, right or wrong
    total: np.ndarray = np.einsum("js,js->s", envelope, newly)
    return total / len(RECALLS)


def recalls_reached(recall: np.ndarray) -> np.ndarray:
    """Return how many of the recall thresholds above 0 are reached, whole numbers as float64.

    Recalls are fractions of whole numbers, so apart from rounding they equal a threshold or are far from it; where
    equal, pycocotools' comparison decides, in which some thresholds are a bit above the fraction (0.57).
    """
    reached = np.floor(recall * 100 + 1e-9)
    reached -= RECALLS.take(reached.astype(np.int16), mode="clip") > recall
    return reached
