"""How each image fares at a score threshold, worst first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from detrkit.evaluation.failures.entries import KINDS, FailureTable, right_detections
from detrkit.evaluation.matching import Matches
from detrkit.evaluation.overlaps import overlap_of


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """What happened on one image.

    Args:
        image_row: Row of the truth's ``image_ids``.
        image_id: The data set's id.
        file_name: As the data set writes it.
        objects: To be found.
        right: Shown detections that find one.
        wrong: Failures by kind of ``KINDS``; "missed" does not count objects that a detection of the wrong class
            or place explains already, so that it may be less than ``objects - right``.
        f1: Of shown detections and objects; None where there are neither.
        mean_iou: Of the right ones; None where there is none.
        severity: Sum of that of its failures.
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
    """All measured images; those with the most severe failures first, then those with most objects."""
    truth, rows = matches.truth, matches.rows
    count = len(truth.image_ids)
    right = right_detections(matches, score)
    images = matches.found.image_rows
    rights = np.bincount(images[right], minlength=count)
    objects = np.bincount(truth.image_rows[matches.measured], minlength=count)
    wrong = np.bincount(table.image_rows * len(KINDS) + table.kinds, minlength=count * len(KINDS))
    wrong = wrong.reshape(count, len(KINDS))
    severity = np.bincount(table.image_rows, table.severity, minlength=count)
    overlap = np.bincount(images[right], matched_iou(matches)[right], minlength=count)
    claims = rights + wrong[:, :-1].sum(axis=1)
    order = rows[np.lexsort((rows, -objects[rows], -severity[rows]))]
    return tuple(
        ImageResult(
            image_row=row,
            image_id=int(truth.image_ids[row]),
            file_name=file_names[row],
            objects=int(objects[row]),
            right=int(rights[row]),
            wrong=tuple(wrong[row].tolist()),
            f1=float(2 * rights[row] / (claims[row] + objects[row])) if claims[row] + objects[row] else None,
            mean_iou=float(overlap[row] / rights[row]) if rights[row] else None,
            severity=float(severity[row]),
        )
        for row in order.tolist()
    )


def matched_iou(matches: Matches) -> np.ndarray:
    """IoU of each detection with what it found at 0.5, NaN where it found nothing, float64 ``[D]``."""
    matched = matches.matched[0]
    iou: np.ndarray = np.where(matched >= 0, overlap_of(matches, np.arange(len(matched)), matched), np.nan)
    return iou
