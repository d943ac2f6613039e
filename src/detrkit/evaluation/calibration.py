"""Calibration of scores: of detections with score 0.8, do 80 of 100 find their object?

Correct means the object of its class, found first, at some least IoU; duplicates are wrong, detections in crowd
regions do not count.

Shapes: D detections, K detections that count, C classes, B bins.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.optimize import minimize

from detrkit.errors import DataError
from detrkit.evaluation.coco import UNDEFINED
from detrkit.evaluation.matching import Matches
from detrkit.evaluation.score_curves import iou_row
from detrkit.threshold_file import ScoreScale, logits_of

_TEMPERATURES = (0.05, 20.0)
_BIASES = (-20.0, 20.0)
# of a score one float32 step from 1; a score of exactly 0 or 1 that is wrong would weigh too much
_LOGIT_LIMIT = 16.0


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A reliability diagram of bins of equal width, and the errors taken from it.

    Args:
        ece: Expected calibration error: the gap between accuracy and mean score of a bin, averaged over detections
            (https://arxiv.org/abs/1706.04599); ``UNDEFINED`` without detections.
        mce: The largest gap of a bin.
        edges: Edges of the bins, 0 to 1, float64 ``[B + 1]``; a score on an edge belongs to the bin above.
        counts: Detections of each bin, int64 ``[B]``.
        confidence: Their mean score, float64 ``[B]``; ``UNDEFINED`` in an empty bin.
        accuracy: Share of them that is correct, float64 ``[B]``; ``UNDEFINED`` in an empty bin.
        per_class_ece: By class id, float64 ``[C]``; ``UNDEFINED`` without detections.
        iou: Least IoU of a correct detection.
    """

    ece: float
    mce: float
    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    per_class_ece: np.ndarray
    iou: float


def calibrate(matches: Matches, bins: int = 15, iou: float = 0.5, scale: ScoreScale | None = None) -> Calibration:
    """Measure how well scores tell how often detections are right.

    Args:
        matches: Matches of detections and objects.
        bins: Number of bins of equal width.
        iou: Least IoU of a correct detection, one of ``IOU_THRESHOLDS``.
        scale: Scale that is applied to the scores first.

    Raises:
        DataError: A score is not 0 to 1.
        UsageError: ``iou`` is none of those.
    """
    scores, correct, class_ids = _outcomes(matches, iou)
    if scale is not None:
        scores = scale(scores)
    classes = len(matches.truth.class_map)
    # counts, sums of scores and correct detections by class and bin
    places = np.minimum((scores * bins).astype(np.int64), bins - 1)
    cells = class_ids * bins + places
    counts, sums, right = (
        np.bincount(cells, weights, minlength=classes * bins).reshape(classes, bins)
        for weights in (None, scores, correct)
    )
    # the diagram of all classes together
    totals = counts.sum(axis=0)
    filled = np.maximum(totals, 1)
    confidence, accuracy = sums.sum(axis=0) / filled, right.sum(axis=0) / filled
    gaps = np.abs(confidence - accuracy)
    of_class = counts.sum(axis=1)
    errors = (gaps * totals).sum() / max(totals.sum(), 1), gaps.max()
    ece, mce = (float(error) if totals.any() else UNDEFINED for error in errors)
    confidence, accuracy = (np.where(totals > 0, values, UNDEFINED) for values in (confidence, accuracy))
    of_classes = np.abs(sums - right).sum(axis=1) / np.maximum(of_class, 1)
    per_class = np.where(of_class > 0, of_classes, UNDEFINED)
    return Calibration(ece, mce, np.linspace(0, 1, bins + 1), totals, confidence, accuracy, per_class, iou)


def fit_temperature(matches: Matches, iou: float = 0.5) -> ScoreScale:
    """Fit the temperature, with a bias where it pays, under which the outcomes are most likely.

    Fitted to logit(score) by maximum likelihood: temperature scaling (https://arxiv.org/abs/1706.04599), and Platt
    scaling if a bias is added. The bias pays where the Bayesian information criterion says so.

    Args:
        matches: Of a split that the detector was not trained on.
        iou: Least IoU of a correct detection, one of ``IOU_THRESHOLDS``.

    Raises:
        DataError: A score is not 0 to 1, or the detections are all right or all wrong.
        UsageError: ``iou`` is none of those.
    """
    scores, correct, _ = _outcomes(matches, iou)
    return fit_scores(scores, correct)


def fit_scores(scores: np.ndarray, correct: np.ndarray) -> ScoreScale:
    """Fit as :func:`fit_temperature` does, of any scores (0 to 1) and outcomes (bool), both ``[K]``.

    Raises:
        DataError: The outcomes are all the same, so that nothing can be fitted.
    """
    if correct.all() or not correct.any():
        reason = f"every one of {len(correct):,} detections is {'correct' if correct.all() else 'wrong'}"
        raise DataError(f"scores cannot be calibrated: {reason if len(correct) else 'there are no detections'}")
    logits = np.clip(logits_of(scores), -_LOGIT_LIMIT, _LOGIT_LIMIT)
    plain, plain_loss = _most_likely(logits, correct, bias=False)
    biased, biased_loss = _most_likely(logits, correct, bias=True)
    pays = 2 * (plain_loss - biased_loss) > math.log(len(correct))
    return biased if pays else plain


def _most_likely(logits: np.ndarray, correct: np.ndarray, bias: bool) -> tuple[ScoreScale, float]:
    """Return parameters of the least negative log likelihood, and that, in nats."""
    sign = np.where(correct, -1.0, 1.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scale, shift = parameters
        margins = sign * (scale * logits + shift)
        slopes = sign * np.exp(-np.logaddexp(0, -margins))
        total = np.logaddexp(0, margins).sum() / len(logits)
        return float(total), np.array([slopes @ logits, slopes.sum()]) / len(logits)

    lowest, highest = (1 / temperature for temperature in reversed(_TEMPERATURES))
    bounds = [(lowest, highest), _BIASES if bias else (0.0, 0.0)]
    how = {"jac": True, "method": "L-BFGS-B", "bounds": bounds, "options": {"ftol": 1e-12}}
    found = minimize(loss, np.array([1.0, 0.0]), **how)  # type: ignore[no-untyped-call]
    return ScoreScale(1 / float(found.x[0]), float(found.x[1])), float(found.fun) * len(logits)


def _outcomes(matches: Matches, iou: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, whether correct, and classes of the detections that count."""
    row = iou_row(iou)
    counted = ~matches.ignored[row]
    scores = matches.found.scores[counted]
    outside = scores[(scores < 0) | (scores > 1)]
    if len(outside):
        raise DataError(
            f"{len(outside):,} scores are not 0 to 1, such as {outside[0]:g}; calibration needs probabilities"
        )
    return scores, matches.correct[row, counted], matches.found.class_ids[counted]
