"""A detector that errs in every way, without a network: detections made from the annotations."""

from __future__ import annotations

import numpy as np

from detrkit.evaluation.evaluator import CocoEvaluator
from tests.unit.evaluation.failures.cases import add_all, simulated_detector


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


def detected(source):
    """An evaluator with what a middling detector would say: jitter, misses, swaps, doubles, clutter."""
    evaluator = CocoEvaluator(source)
    return add_all(evaluator, simulated_detector(evaluator.truth))
