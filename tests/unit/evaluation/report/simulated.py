"""A detector that errs in every way, without a network: detections made from the annotations."""

from __future__ import annotations

import numpy as np

from detrkit.evaluation.coco import CocoEvaluator
from detrkit.types import ImageDetections


def generated(images=40, classes=4, seed=0, names=None, prefix="image"):
    """COCO content with boxes of all sizes; the last class is rare."""
    rng = np.random.default_rng(seed)
    names = names or [f"class {i}" for i in range(classes)]
    content = {
        "images": [
            {"id": 7 * i + 3, "file_name": f"{prefix}{i}.jpg", "height": 240, "width": 320} for i in range(images)
        ],
        "categories": [{"id": 2 * i + 1, "name": name} for i, name in enumerate(names)],
        "annotations": [],
    }
    for image in content["images"]:
        for _ in range(rng.integers(0, 7)):
            width, height = rng.choice([16.0, 50.0, 130.0]) * rng.uniform(0.7, 1.4, 2)
            x, y = rng.uniform(0, 320 - width), rng.uniform(0, 240 - min(height, 239))
            class_id = min(int(rng.geometric(0.5)) - 1, len(names) - 1)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": 2 * class_id + 1,
                    "bbox": [float(x), float(y), float(width), float(height)],
                    "area": float(width * height),
                    "iscrowd": int(rng.random() < 0.03),
                }
            )
    return content


def detected(source, seed=0, clutter=6):
    """An evaluator with what a middling detector would say: jitter, misses, swaps, doubles, clutter."""
    rng = np.random.default_rng(seed)
    evaluator = CocoEvaluator(source)
    truth = evaluator.truth
    classes = max(len(truth.class_map), 1)
    for row, image_id in enumerate(truth.image_ids.tolist()):
        here = (truth.image_rows == row) & ~truth.iscrowd
        boxes = truth.boxes_xywh[here].copy()
        class_ids = truth.class_ids[here].copy()
        seen = rng.random(len(boxes)) < 0.85 - 0.3 * (boxes[:, 2] < 32)
        boxes, class_ids = boxes[seen], class_ids[seen]
        swapped = rng.random(len(boxes)) < 0.12
        class_ids = np.where(swapped, (class_ids + 1) % classes, class_ids)
        boxes += rng.normal(0, 0.06, boxes.shape) * boxes[:, [2, 3, 2, 3]]
        scores = np.clip(rng.beta(6, 2, len(boxes)) - 0.3 * swapped, 0.01, 0.99)
        twice = rng.random(len(boxes)) < 0.1
        noise = np.c_[rng.uniform(0, 250, (clutter, 2)), rng.uniform(10, 80, (clutter, 2))]
        boxes = np.concatenate([boxes, boxes[twice] + 2, noise])
        class_ids = np.r_[class_ids, class_ids[twice], rng.integers(0, classes, clutter)]
        scores = np.r_[scores, 0.6 * scores[twice], rng.beta(1, 5, clutter)]
        boxes[:, 2:] = boxes[:, :2] + np.maximum(boxes[:, 2:], 1)
        evaluator.add(image_id, ImageDetections(boxes, scores, class_ids))
    return evaluator
