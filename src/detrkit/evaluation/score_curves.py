"""Precision, recall and F1 against the score from which detections are taken.

Crowd regions count neither way. Taking only better scores changes no match, so that one matching serves all.

Shapes: D detections, C classes, S score thresholds.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from detrkit.errors import UsageError
from detrkit.evaluation.coco import UNDEFINED
from detrkit.evaluation.matching import IOU_THRESHOLDS, Matches

STEPS = 201
"""Thresholds of the curves, 0 to 1 in steps of 0.005: finer than a screen shows. Best values use every score."""


@dataclasses.dataclass(frozen=True)
class Cuts:
    """Detections of one class (or of all) taken from the best down, wherever the score drops; K cuts.

    Args:
        thresholds: Least score that takes as many, between the last taken and the first left out, so that rounding
            in another runtime loses none; the last taken's where nothing is left. float64 ``[K]``, descending.
        lowest: Score of the last taken, float64 ``[K]``.
        taken: Detections, int64 ``[K]``.
        right: Correct ones among them, int64 ``[K]``.
        objects: Objects to be found.
    """

    thresholds: np.ndarray
    lowest: np.ndarray
    taken: np.ndarray
    right: np.ndarray
    objects: int

    @property
    def precision(self) -> np.ndarray:
        """float64 ``[K]``."""
        precision: np.ndarray = self.right / self.taken
        return precision

    @property
    def recall(self) -> np.ndarray:
        """float64 ``[K]``; 0 without objects."""
        recall: np.ndarray = self.right / max(self.objects, 1)
        return recall

    @property
    def f1(self) -> np.ndarray:
        """float64 ``[K]``."""
        f1: np.ndarray = 2 * self.right / (self.taken + self.objects)
        return f1

    def place(self, threshold: float) -> int:
        """Return row of the cut that a threshold makes; -1 where it takes nothing."""
        return int(np.searchsorted(-self.lowest, -threshold, side="right")) - 1


@dataclasses.dataclass(frozen=True)
class ScoreCurves:
    """Row 0 is all classes together (every object and detection counts the same), row 1 + c is class c.

    Args:
        thresholds: Score from which detections are taken, float64 ``[S]``.
        precision: float64 ``[C + 1, S]``; ``UNDEFINED`` where no detection is taken.
        recall: float64 ``[C + 1, S]``; ``UNDEFINED`` for a class without objects.
        f1: float64 ``[C + 1, S]``; ``UNDEFINED`` for a class without objects.
        best_f1: The highest at any threshold, not only at ``thresholds``, float64 ``[C + 1]``; ``UNDEFINED`` for a
            class without objects.
        best_score: Threshold of the best F1, float64 ``[C + 1]``; ``UNDEFINED`` without objects or detections.
        iou: Least IoU of a correct detection.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best_f1: np.ndarray
    best_score: np.ndarray
    iou: float


def score_curves(matches: Matches, iou: float = 0.5) -> ScoreCurves:
    """Measure precision, recall and F1 against the score threshold.

    Args:
        matches: Matches of detections and objects.
        iou: Least IoU of a correct detection, one of ``IOU_THRESHOLDS``.

    Raises:
        UsageError: ``iou`` is none of them.
    """
    row = iou_row(iou)
    counted = ~matches.ignored[row]
    scores, class_ids = matches.found.scores[counted], matches.found.class_ids[counted]
    correct = matches.correct[row, counted]
    objects = matches.objects_by_class()
    thresholds = np.linspace(0, 1, STEPS)
    taken = _above(thresholds, scores, class_ids, len(objects))
    right = _above(thresholds, scores[correct], class_ids[correct], len(objects))
    totals = np.r_[objects.sum(), objects][:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall, f1 = right / taken, right / totals, 2 * right / (taken + totals)
    precision = np.where(taken > 0, precision, UNDEFINED)
    recall, f1 = (np.where(totals > 0, values, UNDEFINED) for values in (recall, f1))
    best = [best_cut(cuts) for cuts in (together_cuts(matches, row), *class_cuts(matches, row))]
    best_f1, best_score = np.array(best).T
    return ScoreCurves(thresholds, precision, recall, f1, best_f1, best_score, iou)


def together_cuts(matches: Matches, row: int = 0, scores: np.ndarray | None = None) -> Cuts:
    """Return the cuts of all classes together.

    Args:
        matches: Matches of detections and objects.
        row: Row of the IoU threshold.
        scores: In place of the detections' own, such as calibrated ones, float64 ``[D]``, in the same order.
    """
    own = matches.found.scores if scores is None else scores
    order = _ranked(matches, row, own)
    return _cuts(own[order], matches.correct[row, order], int(matches.measured.sum()))


def class_cuts(matches: Matches, row: int = 0, scores: np.ndarray | None = None) -> list[Cuts]:
    """Return the cuts of each class; see :func:`together_cuts`."""
    own = matches.found.scores if scores is None else scores
    order = _ranked(matches, row, own)
    order = order[np.argsort(matches.found.class_ids[order], kind="stable")]
    objects = matches.objects_by_class().tolist()
    ends = np.searchsorted(matches.found.class_ids[order], np.arange(len(objects) + 1))
    scores, correct = own[order], matches.correct[row, order]
    parts = (slice(ends[class_id], ends[class_id + 1]) for class_id in range(len(objects)))
    return [_cuts(scores[part], correct[part], objects[i]) for i, part in enumerate(parts)]


def best_cut(cuts: Cuts) -> tuple[float, float]:
    """Return best F1 and its threshold; ``UNDEFINED`` as in :class:`ScoreCurves`."""
    if not cuts.objects:
        return UNDEFINED, UNDEFINED
    if not len(cuts.taken):
        return 0.0, UNDEFINED
    place = int(np.argmax(cuts.f1))  # of equals the one that takes least
    return float(cuts.f1[place]), float(cuts.thresholds[place])


def iou_row(iou: float) -> int:
    """Return row of an IoU threshold in :class:`Matches`.

    Raises:
        UsageError: It is none of the ten.
    """
    rows = np.flatnonzero(np.isclose(IOU_THRESHOLDS, iou, rtol=0, atol=1e-6))
    if not len(rows):
        raise UsageError(f"iou is {iou}, expected one of 0.5, 0.55, ... 0.95")
    return int(rows[0])


def _ranked(matches: Matches, row: int, scores: np.ndarray) -> np.ndarray:
    """Return detections that count, best first."""
    counted = np.flatnonzero(~matches.ignored[row])
    ranked: np.ndarray = counted[np.argsort(-scores[counted], kind="stable")]
    return ranked


def _cuts(scores: np.ndarray, correct: np.ndarray, objects: int) -> Cuts:
    """Return cuts of detections by descending score."""
    drops = np.flatnonzero(scores[1:] < scores[:-1])
    last = np.r_[drops, len(scores) - 1] if len(scores) else drops
    between = (scores[drops] + scores[drops + 1]) / 2
    between = np.where(between > scores[drops + 1], between, scores[drops])  # of neighbouring numbers the upper
    return Cuts(np.r_[between, scores[-1:]], scores[last], last + 1, np.cumsum(correct)[last], objects)


def _above(thresholds: np.ndarray, scores: np.ndarray, class_ids: np.ndarray, classes: int) -> np.ndarray:
    """Return detections of each threshold or more, all classes and then each, int64 ``[C + 1, S]``."""
    steps = np.searchsorted(thresholds, scores, side="right")  # thresholds that a score reaches
    counts = np.bincount(class_ids * (len(thresholds) + 1) + steps, minlength=classes * (len(thresholds) + 1))
    counts = counts.reshape(classes, len(thresholds) + 1)
    above = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    together: np.ndarray = np.concatenate([above.sum(axis=0, keepdims=True), above])
    return together
