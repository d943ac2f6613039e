"""The conversion of detrkit's ``ImageDetections`` to supervision's ``Detections``."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from detrkit.classes import ClassMap, SizeHW
from detrkit.types import ImageDetections

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
) -> sv.Detections:
    """Convert detections of one image for supervision, those with score >= ``threshold``, best first.

    ``class_id`` is contiguous; ``data["class_name"]`` and ``data["category_id"]`` (the data set's id) go with
    it. ``metadata`` holds ``source`` and ``size_hw``. Boxes are not clipped to the image, as published: a
    model may place an edge a little outside; ``sv.clip_boxes`` cuts them where that matters.
    """
    keep = detections.scores >= threshold
    class_ids = detections.class_ids[keep].astype(np.int64)
    names = np.array(class_map.names, dtype=np.str_)
    categories = np.array(class_map.category_ids, dtype=np.int64)
    metadata: dict[str, Any] = {"source": source}
    if size_hw is not None:
        metadata["size_hw"] = (int(size_hw[0]), int(size_hw[1]))
    return sv.Detections(
        xyxy=detections.boxes_xyxy[keep].astype(np.float32),
        confidence=detections.scores[keep].astype(np.float32),
        class_id=class_ids,
        data={"class_name": names[class_ids], "category_id": categories[class_ids]},
        metadata=metadata,
    )
