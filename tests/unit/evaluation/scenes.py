"""Small scenes of boxes, for measures that are checked by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.types import ImageDetections

SIDE = 100


def scene(
    objects: Sequence[tuple[str, float]],
    found: Sequence[tuple[str, float, float]],
    *,
    crowds: Sequence[tuple[str, float]] = (),
    classes: str = "ab",
    images: int = 1,
) -> CocoEvaluator:
    """Boxes of 100 x 100 pixels in a row: objects (class, left edge) and detections (class, score, left edge).

    Shifted by 10 pixels two boxes have an IoU of 0.82, by 20 of 0.67, by 50 of 0.33, by 90 of 0.05. With several
    images, all are alike.
    """
    annotations = [(name, left, 0) for name, left in objects] + [(name, left, 1) for name, left in crowds]
    content = {
        "images": [{"id": image + 1, "height": 1000, "width": 10000} for image in range(images)],
        "categories": [{"id": 10 * i + 10, "name": name} for i, name in enumerate(classes)],
        "annotations": [
            {
                "id": len(annotations) * image + number + 1,
                "image_id": image + 1,
                "category_id": 10 * classes.index(name) + 10,
                "bbox": [left, 0, SIDE, SIDE],
                "area": SIDE * SIDE,
                "iscrowd": crowd,
            }
            for image in range(images)
            for number, (name, left, crowd) in enumerate(annotations)
        ],
    }
    evaluator = CocoEvaluator(content)
    boxes = [[left, 0, left + SIDE, SIDE] for _, _, left in found]
    detections = ImageDetections(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in found], dtype=np.float32),
        np.array([classes.index(name) for name, _, _ in found], dtype=np.int64),
    )
    for image in range(images):
        evaluator.add(image + 1, detections)
    return evaluator


def objects_in_images(images, class_of=lambda image: 0, classes=2):
    """One object in each image."""
    return {
        "images": [{"id": i + 1, "height": 100, "width": 100} for i in range(images)],
        "categories": [{"id": i + 1, "name": f"class {i}"} for i in range(classes)],
        "annotations": [
            {"id": i + 1, "image_id": i + 1, "category_id": class_of(i) + 1, "bbox": [8, 8, 32, 32], "area": 1024}
            for i in range(images)
        ],
    }
