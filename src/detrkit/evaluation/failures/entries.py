"""Every failure above a score threshold as columns: false positives by kind, and objects that were missed.

Shapes: F failures, D detections, N annotations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from detrkit.classes import SIZE_LIMITS
from detrkit.evaluation.error_types import ErrorKind, ErrorTypes
from detrkit.evaluation.matching import Columns, Matches
from detrkit.evaluation.overlaps import matched_iou
from detrkit.evaluation.truth import CocoTruth

KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
"""What can go wrong, by code; the first five are false positives (TIDE, arXiv:2008.08115)."""

MISSED = KINDS.index("missed")
FALSE_POSITIVES = KINDS[:MISSED]

SIZES = tuple(SIZE_LIMITS)

_NAMES = [kind.name.lower() for kind in ErrorKind]
_CODE_BY_KIND = np.array([KINDS.index(name) if name in KINDS else -1 for name in _NAMES])


@dataclasses.dataclass(frozen=True)
class FailureTable(Columns):
    """Failures, worst first.

    The severity of a false positive is the square of its score, and half of that for a duplicate: a confident
    error outweighs much clutter. That of a missed object is 0.25 for the smallest up to 1 for one that fills its
    image, linear in the share of the image's side: a large object is hard to overlook.

    Args:
        kinds: Codes of :data:`KINDS`, int64 ``[F]``.
        image_rows: Rows of the truth's ``image_ids``, int64 ``[F]``.
        detections: The false positive, or of a missed object the detection that comes nearest to it; rows of
            ``Matches.found``, -1 for none, int64 ``[F]``.
        objects: The missed object, or the one that explains the false positive; rows of the truth's annotations,
            -1 for none, int64 ``[F]``.
        iou: IoU of detection and object, NaN unless there are both, float64 ``[F]``.
        severity: 0 to 1, float64 ``[F]``.
    """

    kinds: np.ndarray
    image_rows: np.ndarray
    detections: np.ndarray
    objects: np.ndarray
    iou: np.ndarray
    severity: np.ndarray


def failure_table(matches: Matches, errors: ErrorTypes, score: float) -> FailureTable:
    """List everything that goes wrong when detections below ``score`` are not shown."""
    parts = _false_positives(matches, errors, score), _missed(matches, errors, score)
    table = FailureTable(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))
    return table.select(np.argsort(-table.severity, kind="stable"))


def right_detections(matches: Matches, score: float) -> np.ndarray:
    """Return detections that are shown and right at an IoU of 0.5, bool ``[D]``."""
    right: np.ndarray = matches.correct[0] & (matches.found.scores >= score)
    return right


def found_objects(matches: Matches, score: float) -> np.ndarray:
    """Return objects that a shown detection finds at an IoU of 0.5, bool ``[N]``."""
    finder = matches.found_by[0]
    found: np.ndarray = finder >= 0
    found[found] = matches.found.scores[finder[found]] >= score
    found &= matches.measured
    return found


def value_at(values: np.ndarray, row: int) -> Any:
    """Return a plain number, or a tuple of them, of a column; None at -1."""
    value = values[row].tolist() if row >= 0 else None
    return tuple(value) if isinstance(value, list) else value


def certainty(scores: np.ndarray) -> np.ndarray:
    """Return scores if they lie in 0 to 1; of other kinds of scores, the share of all that is no higher."""
    if len(scores) == 0 or (scores.min() >= 0 and scores.max() <= 1):
        return scores
    shares: np.ndarray = np.searchsorted(np.sort(scores), scores, side="right") / len(scores)
    return shares


def side_shares(truth: CocoTruth, image_rows: np.ndarray, boxes_xywh: np.ndarray) -> np.ndarray:
    """Return the root of the share of its image that each box takes, 0 to 1; 0.5 where the size is unknown."""
    image_area = truth.sizes_hw[image_rows].prod(axis=1).astype(np.float64)
    area = np.maximum(boxes_xywh[:, 2] * boxes_xywh[:, 3], 0)
    share = np.divide(area, image_area, out=np.full(len(area), 0.25), where=image_area > 0)
    shares: np.ndarray = np.sqrt(np.minimum(share, 1))
    return shares


def sizes_of(area: np.ndarray) -> np.ndarray:
    """Return codes of :data:`SIZES` by area in pixels."""
    limits = [limit for _, limit in SIZE_LIMITS.values()][:-1]
    codes: np.ndarray = np.searchsorted(limits, area, side="right")
    return codes


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """What happened on one image.

    Args:
        image_row: Row of the truth's ``image_ids``.
        image_id: The data set's id.
        file_name: File name as the data set writes it.
        objects: Objects to be found.
        right: Shown detections that find one.
        wrong: Failures by kind of ``KINDS``; "missed" does not count objects that a detection of the wrong class
            or place explains already, so that it may be less than ``objects - right``.
        f1: F1 of shown detections and objects; None where there are neither.
        mean_iou: Mean IoU of the right ones; None where there is none.
        severity: Sum of the severity of its failures.
    """

    image_row: int
    image_id: int
    file_name: str
    objects: int
    right: int
    wrong: tuple[int, ...]
    f1: float | None
    mean_iou: float | None
    severity: float


def image_results(
    matches: Matches, table: FailureTable, file_names: Sequence[str], score: float
) -> tuple[ImageResult, ...]:
    """List all measured images; those with the most severe failures first, then those with most objects."""
    truth, rows = matches.truth, matches.rows
    count = len(truth.image_ids)
    # counts and sums of every image
    right = right_detections(matches, score)
    images = matches.found.image_rows
    rights = np.bincount(images[right], minlength=count)
    objects = np.bincount(truth.image_rows[matches.measured], minlength=count)
    wrong = np.bincount(table.image_rows * len(KINDS) + table.kinds, minlength=count * len(KINDS))
    wrong = wrong.reshape(count, len(KINDS))
    severity = np.bincount(table.image_rows, table.severity, minlength=count)
    overlap = np.bincount(images[right], matched_iou(matches)[right], minlength=count)
    claims = rights + wrong[:, :-1].sum(axis=1) + objects
    f1 = np.where(claims > 0, 2 * rights / np.maximum(claims, 1), np.array(None))
    mean_iou = np.where(rights > 0, overlap / np.maximum(rights, 1), np.array(None))
    # worst first
    order = rows[np.lexsort((rows, -objects[rows], -severity[rows]))]
    names = [file_names[row] for row in order.tolist()]
    kinds = map(tuple, wrong[order].tolist())
    columns = [array[order].tolist() for array in (truth.image_ids, objects, rights, f1, mean_iou, severity)]
    return tuple(map(ImageResult, order.tolist(), columns[0], names, *columns[1:3], kinds, *columns[3:]))


def _false_positives(matches: Matches, errors: ErrorTypes, score: float) -> FailureTable:
    codes = _CODE_BY_KIND[errors.kinds]
    rows = np.flatnonzero((codes >= 0) & (matches.found.scores >= score))
    codes, images = codes[rows], matches.found.image_rows[rows]
    objects = errors.partner[rows].astype(np.int64)
    iou = np.where(objects >= 0, errors.iou[rows], np.nan)
    weight = np.where(codes == KINDS.index("duplicate"), 0.5, 1.0)
    severity = weight * certainty(matches.found.scores)[rows] ** 2
    return FailureTable(codes, images, rows, objects, iou, severity)


def _missed(matches: Matches, errors: ErrorTypes, score: float) -> FailureTable:
    """List objects not found, unless a shown detection has only the class or only the place wrong, as in TIDE."""
    objects = np.flatnonzero(matches.measured & ~(errors.touched_at >= score))
    detections, iou = _nearest(matches, objects)
    truth = matches.truth
    images = truth.image_rows[objects]
    severity = 0.25 + 0.75 * side_shares(truth, images, truth.boxes_xywh[objects])
    return FailureTable(np.full(len(objects), MISSED), images, detections, objects, iou, severity)


def _nearest(matches: Matches, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return of each object the detection that finds it under the threshold, else the one overlapping most."""
    pairs = matches.pairs
    wanted = np.zeros(len(matches.truth.class_ids), dtype=bool)
    wanted[objects] = True
    pairs = pairs.select(wanted[pairs.objects])
    finds = matches.found_by[0][pairs.objects] == pairs.detections
    pairs = pairs.select(np.lexsort((pairs.detections, -pairs.iou, ~finds, pairs.objects)))
    first = np.searchsorted(pairs.objects, objects)
    detections, iou = np.full(len(objects), -1, dtype=np.int64), np.full(len(objects), np.nan)
    has = first < len(pairs.objects)
    has[has] = pairs.objects[first[has]] == objects[has]
    detections[has], iou[has] = pairs.detections[first[has]], pairs.iou[first[has]]
    return detections, iou
