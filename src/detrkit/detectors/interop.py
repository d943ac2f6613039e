"""Conversions between detrkit's ``ImageDetections``, supervision's ``Detections`` and COCO's result format."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.classes import ClassMap, SizeHW
from detrkit.errors import UsageError
from detrkit.files import atomic_file
from detrkit.types import ImageDetections

with warnings.catch_warnings():
    # On import supervision warns that OpenCV is missing; nothing here draws.
    warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
    import supervision as sv

__all__ = ["sv", "to_coco", "to_supervision", "write_predictions"]


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


def to_coco(detections: sv.Detections, image_id: int | None = None) -> list[dict[str, Any]]:
    """Convert detections of :meth:`Detector.predict` to COCO's result format, best first.

    Args:
        detections: Detections of one image.
        image_id: The data set's id of the image. Without one, which pycocotools cannot read, each entry
            carries ``file_name`` (the source) instead, so that entries can be told apart.

    Raises:
        UsageError: The detections carry no category ids, so they do not come from ``Detector.predict``.
    """
    if len(detections) == 0:
        return []
    if "category_id" not in detections.data:
        raise UsageError('the detections have no data["category_id"]; expected what Detector.predict returned')
    key = {"file_name": str(detections.metadata.get("source", ""))} if image_id is None else {"image_id": image_id}
    boxes = np.asarray(detections.xyxy, dtype=np.float32)
    categories, scores = np.asarray(detections.data["category_id"]), np.asarray(detections.confidence)
    sides = boxes[:, 2:] - boxes[:, :2]
    columns = (categories.tolist(), boxes[:, :2].tolist(), sides.tolist(), scores.tolist())
    return [
        {**key, "category_id": category_id, "bbox": corner + side, "score": score}
        for category_id, corner, side, score in zip(*columns, strict=True)
    ]


def write_predictions(path: str | Path, predictions: Iterable[tuple[int | None, sv.Detections]]) -> int:
    """Write detections of many images as one COCO result list and return the number of detections.

    Args:
        path: The JSON file; it appears, whole, when the last image is done.
        predictions: Image id (or None, see :func:`to_coco`) and detections of each image, read one by one.
    """
    written = 0
    with atomic_file(Path(path)) as file:
        file.write("[")
        for image_id, detections in predictions:
            for entry in to_coco(detections, image_id):
                file.write(",\n" if written else "\n")
                file.write(json.dumps(entry))
                written += 1
        file.write("\n]\n")
    return written
