"""Detections of an image, free of torch.

Shapes: K detections of one image.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from detrkit.classes import ClassMap, SizeHW


class ImageDetections(NamedTuple):
    """Detections of one image, best first, in pixels of the original file.

    boxes_xyxy: float32 ``[K, 4]``. scores: float32 ``[K]``. class_ids: int64 ``[K]``, contiguous.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Detections:
    """Detections of an image for people, with the fields of ``supervision.Detections``.

    Args:
        xyxy: Boxes in pixels of the image, float32 ``[K, 4]``.
        confidence: Scores, float32 ``[K]``.
        class_id: Contiguous class ids, int64 ``[K]``.
        data: ``class_name`` and ``category_id`` (the data set's id), ``[K]`` each.
        metadata: ``source`` and ``size_hw`` of the image.
    """

    xyxy: np.ndarray
    confidence: np.ndarray
    class_id: np.ndarray
    data: dict[str, np.ndarray]
    metadata: dict[str, Any]

    def __len__(self) -> int:
        return len(self.xyxy)


def name_detections(
    found: ImageDetections, class_map: ClassMap, source: str = "", size_hw: SizeHW | None = None
) -> Detections:
    """Add what people want to know of detections: names, category ids, and where they come from."""
    class_ids = found.class_ids.astype(np.int64)
    names = np.array(class_map.names, dtype=np.str_)
    categories = np.array(class_map.category_ids, dtype=np.int64)
    metadata: dict[str, Any] = {"source": source}
    if size_hw is not None:
        metadata["size_hw"] = (int(size_hw[0]), int(size_hw[1]))
    return Detections(
        found.boxes_xyxy.astype(np.float32),
        found.scores.astype(np.float32),
        class_ids,
        {"class_name": names[class_ids], "category_id": categories[class_ids]},
        metadata,
    )
