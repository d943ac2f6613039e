"""Confusion of classes.

Shapes: D detections, N annotations, C classes.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from detrkit.evaluation.matching import Matches, match_pairs
from detrkit.evaluation.score_curves import best_cut, iou_row, together_cuts


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Objects and detections by true and detected class.

    Args:
        matrix: int64 ``[C + 1, C + 1]``: rows the true class, columns the detected one, last the background. The
            last column counts objects that were missed, the last row detections where there is no object.
        score: Detections of this score or more are counted.
        iou: Least IoU of a detection with its object.
    """

    matrix: np.ndarray
    score: float
    iou: float


def confusion(matches: Matches, score: float | None = None, iou: float = 0.5) -> Confusion:
    """Count which class is taken for which.

    In order of score, each detection takes the free object it overlaps most, of whatever class. Unlike hotcoco's,
    which counts the same otherwise, a detection in a crowd region of its class is left out, as COCO leaves it out.

    Args:
        matches: Matches of detections and objects.
        score: Least score; that of the best F1 over all classes if not given.
        iou: Least IoU of a detection with its object, one of ``IOU_THRESHOLDS``.

    Raises:
        UsageError: ``iou`` is none of them.
    """
    row = iou_row(iou)
    if score is None:
        score = max(best_cut(together_cuts(matches, row))[1], 0.0)
    truth, found = matches.truth, matches.found
    taken = found.scores >= score
    pairs = matches.pairs.select(taken[matches.pairs.detections] & ~truth.ignored[matches.pairs.objects])
    one_class = dataclasses.replace(found, class_ids=np.zeros_like(found.class_ids))
    matched, found_by = match_pairs(pairs, truth, one_class, np.array([iou]))
    background = len(truth.class_map)
    taken &= (matched[0] >= 0) | ~matches.ignored[row]
    true_class = np.append(truth.class_ids, background)  # at -1 the background
    missed = truth.class_ids[matches.measured & (found_by[0] < 0)]
    rows = np.r_[true_class[matched[0, taken]], missed]
    columns = np.r_[found.class_ids[taken], np.full(len(missed), background)]
    size = background + 1
    matrix = np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)
    return Confusion(matrix.astype(np.int64), float(score), iou)
