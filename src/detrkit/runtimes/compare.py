"""Comparison of detections of the same picture, found by two programs.

Shapes: K detections.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import msgspec
import numpy as np

from detrkit.detections import ImageDetections
from detrkit.masks import differing_pixels

FLOOR = 0.05
"""Score from which every detection has to be found again."""
_LEAST = 5  # best detections that are compared whatever their scores


class Tolerance(msgspec.Struct, frozen=True):
    """How far detections may lie apart.

    Args:
        score: Difference of scores.
        box: Difference of edges, in pixels of the picture.
        mask: Share of a picture's pixels in which a mask may differ.
        missing: Share of detections that may lie further apart: in few digits, queries that are about equally good
            change places.
    """

    score: float = 1e-4
    box: float = 0.01
    missing: float = 0.0
    mask: float = 1e-3


TOLERANCES = {
    "onnxruntime": Tolerance(),
    "openvino": Tolerance(1e-3, 0.1, mask=0.005),
    "openvino-bf16": Tolerance(0.05, 4.0, missing=0.02, mask=0.05),
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
        mask: Greatest share of a picture's pixels in which one of their masks differs.
    """

    detections: int = 0
    missing: int = 0
    score: float = 0.0
    box: float = 0.0
    mask: float = 0.0

    def within(self, tolerance: Tolerance) -> bool:
        """Return True if as many detections were found again as have to be."""
        return self.missing <= tolerance.missing * self.detections

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.detections + other.detections,
            self.missing + other.missing,
            max(self.score, other.score),
            max(self.box, other.box),
            max(self.mask, other.mask),
        )


def compared(found: ImageDetections) -> int:
    """Return the number of detections, the best, that are to be found again."""
    return max(int((found.scores >= FLOOR).sum()), min(_LEAST, len(found.scores)))


def compare_detections(
    one: ImageDetections,
    other: ImageDetections,
    tolerance: Tolerance,
    masks: Sequence[str] = (),
    mask_threshold: float = 0.5,
) -> Difference:
    """Find each detection from :data:`FLOOR` on among all the other's, both ways; order does not count.

    Args:
        one: Detections.
        other: Detections.
        tolerance: How far they may lie apart.
        masks: Masks of the first of ``one``, as a :class:`detrkit.runtimes.bundle.GoldenPicture` has them.
        mask_threshold: Probability from which a pixel belongs to a mask of ``other``.
    """
    difference, places = _find_again(one, other, tolerance)
    for counts, place in zip(masks, places, strict=False):
        if place is None or other.masks is None:
            continue
        [found] = other.masks.take(np.array([place])).encode(mask_threshold)
        share = 0.0 if found["counts"] == counts else differing_pixels({**found, "counts": counts}, found)
        difference += Difference(missing=1) if share > tolerance.mask else Difference(mask=share)
    return difference + _find_again(other, one, tolerance)[0]


def _find_again(
    wanted: ImageDetections, found: ImageDetections, tolerance: Tolerance
) -> tuple[Difference, list[int | None]]:
    """Return what differs, and the place of each detection among those found, None where it is not."""
    count = compared(wanted)
    places: list[int | None] = []
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
            places.append(None)
            continue
        best = int(np.argmin(np.where(fits, boxes / tolerance.box + scores / tolerance.score, np.inf)))
        free[best] = False
        places.append(best)
        difference += Difference(score=float(scores[best]), box=float(boxes[best]))
    return difference, places
