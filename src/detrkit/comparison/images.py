"""Images on which two detectors disagree most.

Scores of two detectors mean different things, so each is taken at the threshold where its own F1 over all classes,
at IoU 0.5, is best. What then counts are mistakes: objects that are missed, and detections that are false,
averaged over COCO's ten IoU thresholds.

Shapes: I images, D detections, N annotations, T IoU thresholds.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from detrkit.evaluation.coco import UNDEFINED
from detrkit.evaluation.matching import Matches
from detrkit.evaluation.score_curves import best_cut, together_cuts


@dataclasses.dataclass(frozen=True)
class Operation:
    """A detector at its own best threshold, image by image.

    Args:
        threshold: Least score; infinite where none of its detections is right.
        best_f1: F1 there, over all classes, at IoU 0.5; NaN without objects.
        found: Objects it finds, bool ``[T, N]``.
        missed: Objects missed of each image, mean over IoU thresholds, float64 ``[I]``.
        false: Detections of each image, likewise.
    """

    threshold: float
    best_f1: float
    found: np.ndarray
    missed: np.ndarray
    false: np.ndarray

    @property
    def mistakes(self) -> np.ndarray:
        """Both kinds, float64 ``[I]``."""
        mistakes: np.ndarray = self.missed + self.false
        return mistakes


@dataclasses.dataclass(frozen=True)
class ImageDifferences:
    """Compare two detectors on each image.

    Args:
        rows: Images, rows of the truth, int64 ``[I]``.
        objects: Objects to be found in each, int64 ``[I]``.
        disagreement: Objects that only one of them finds, and how far apart their numbers of false detections
            are, float64 ``[I]``.
        gain: Mistakes that the second makes fewer than the first, float64 ``[I]``.
        first: The first detector.
        second: The second.
    """

    rows: np.ndarray
    objects: np.ndarray
    disagreement: np.ndarray
    gain: np.ndarray
    first: Operation
    second: Operation

    def ranked(self) -> np.ndarray:
        """Return places of the images, those with most disagreement first, without those where there is none."""
        order = np.lexsort((self.rows, -np.abs(self.gain), -self.disagreement))
        ranked: np.ndarray = order[self.disagreement[order] > 0]
        return ranked


def operate(matches: Matches) -> Operation:
    """Take a detector at its best threshold."""
    best_f1, threshold = best_cut(together_cuts(matches))
    if threshold == UNDEFINED or best_f1 <= 0:
        threshold = np.inf
    taken = matches.found.scores >= threshold
    by = matches.found_by
    found = (by >= 0) & taken[by] if len(taken) else np.zeros_like(by, dtype=bool)
    false = taken & ~matches.correct & ~matches.ignored
    image_of_object = matches.truth.image_rows[matches.measured]
    missed = (~found[:, matches.measured]).mean(axis=0)
    missed = _by_image(matches, image_of_object, missed)
    false = _by_image(matches, matches.found.image_rows, false.mean(axis=0))
    return Operation(float(threshold), np.nan if best_f1 == UNDEFINED else best_f1, found, missed, false)


def compare_images(matches: Matches, first: Operation, second: Operation) -> ImageDifferences:
    """Compare two detectors on each image.

    Args:
        matches: Matches of either; both on the same annotations and images.
        first: The first.
        second: The second.
    """
    image_of_object = matches.truth.image_rows[matches.measured]
    only_one = (first.found != second.found)[:, matches.measured].mean(axis=0)
    disagreement = _by_image(matches, image_of_object, only_one) + np.abs(first.false - second.false)
    objects = _by_image(matches, image_of_object, np.ones(len(image_of_object))).astype(np.int64)
    gain = first.mistakes - second.mistakes
    return ImageDifferences(matches.rows, objects, disagreement, gain, first, second)


def _by_image(matches: Matches, image_rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum values over each measured image, float64 ``[I]``."""
    sums = np.bincount(image_rows, weights=values, minlength=len(matches.truth.image_ids))
    by_image: np.ndarray = sums[matches.rows]
    return by_image
