"""Comparison of detections of the same picture, found by two programs.

Shapes: K detections.
"""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np

from detrkit.detections import ImageDetections

FLOOR = 0.05
"""Score from which every detection has to be found again."""
_LEAST = 5  # best detections that are compared whatever their scores


class Tolerance(msgspec.Struct, frozen=True):
    """How far detections may lie apart.

    Args:
        score: Difference of scores.
        box: Difference of edges, in pixels of the picture.
        missing: Share of detections that may lie further apart: in few digits, queries that are about equally good
            change places.
    """

    score: float = 1e-4
    box: float = 0.01
    missing: float = 0.0


TOLERANCES = {
    "onnxruntime": Tolerance(),
    "openvino": Tolerance(1e-3, 0.1),
    "openvino-bf16": Tolerance(0.05, 4.0, missing=0.02),
}
"""What a runtime is held to, against torch in float32; of bf16, which has three digits, AP says more."""

_INT8 = Tolerance(0.1, 5.0, 0.05)  # runtimes join other layers before they round; AP says more


def tolerance_of(runtime: str, precision: str) -> Tolerance:
    """Return what a runtime is held to: against torch, or of an INT8 graph against where that was written."""
    return _INT8 if precision == "int8" else TOLERANCES[runtime]


@dataclasses.dataclass(frozen=True)
class Difference:
    """What differs between the detections of some pictures.

    Args:
        detections: Detections that had to be found again.
        missing: Of these, those that were not, or not within the tolerance.
        score: Greatest difference of scores of the others.
        box: Greatest difference of their edges, in pixels.
    """

    detections: int = 0
    missing: int = 0
    score: float = 0.0
    box: float = 0.0

    def within(self, tolerance: Tolerance) -> bool:
        """Return True if as many detections were found again as have to be."""
        return self.missing <= tolerance.missing * self.detections

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.detections + other.detections,
            self.missing + other.missing,
            max(self.score, other.score),
            max(self.box, other.box),
        )


def compare_detections(one: ImageDetections, other: ImageDetections, tolerance: Tolerance) -> Difference:
    """Find each detection from :data:`FLOOR` on among all the other's, both ways; order does not count."""
    return _find_again(one, other, tolerance) + _find_again(other, one, tolerance)


def _find_again(wanted: ImageDetections, found: ImageDetections, tolerance: Tolerance) -> Difference:
    count = max(int((wanted.scores >= FLOOR).sum()), min(_LEAST, len(wanted.scores)))
    free = np.ones(len(found.scores), dtype=bool)
    difference = Difference(detections=count)
    for row in range(count):
        scores = np.abs(found.scores.astype(np.float64) - wanted.scores[row])
        boxes = np.abs(found.boxes_xyxy.astype(np.float64) - wanted.boxes_xyxy[row]).max(axis=1, initial=0.0)
        # NaN is within no tolerance
        fits = free & (found.class_ids == wanted.class_ids[row])
        fits &= (scores <= tolerance.score) & (boxes <= tolerance.box)
        if not fits.any():
            difference += Difference(missing=1)
            continue
        best = int(np.argmin(np.where(fits, boxes / tolerance.box + scores / tolerance.score, np.inf)))
        free[best] = False
        difference += Difference(score=float(scores[best]), box=float(boxes[best]))
    return difference
