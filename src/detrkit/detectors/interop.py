"""The conversion of detrkit's ``ImageDetections`` to supervision's ``Detections``."""

from __future__ import annotations

import warnings

from detrkit.classes import ClassMap, SizeHW
from detrkit.detections import ImageDetections, name_detections
from detrkit.threshold_file import take_detections

with warnings.catch_warnings():
    # On import supervision warns that OpenCV is missing; nothing here draws.
    warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
    import supervision as sv

__all__ = ["sv", "to_supervision"]


def to_supervision(
    detections: ImageDetections,
    class_map: ClassMap,
    *,
    source: str = "",
    size_hw: SizeHW | None = None,
    threshold: float = 0.0,
    mask_threshold: float = 0.5,
) -> sv.Detections:
    """Convert detections of one image for supervision, those with score >= ``threshold``, best first.

    ``class_id`` is contiguous; ``data["class_name"]`` and ``data["category_id"]`` (the data set's id) go with
    it. ``metadata`` holds ``source`` and ``size_hw``. Boxes are not clipped to the image, as published: a
    model may place an edge a little outside; ``sv.clip_boxes`` cuts them where that matters. ``mask`` holds the
    pixels of a model with masks, those of probability over ``mask_threshold``.
    """
    named = name_detections(take_detections(detections, threshold), class_map, source, size_hw, mask_threshold)
    return sv.Detections(**vars(named))
