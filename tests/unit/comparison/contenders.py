"""Detections with known faults on a small split, for comparisons without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.unit.detectors.splits import entry, write_split

CATEGORIES = {1: "cat", 3: "dog", 9: "bird"}
IMAGES = 24
SIDE = 96


def write_data(
    root: Path, categories: Mapping[int, str] = CATEGORIES, names: Mapping[int, str] | None = None
) -> Path:
    """Three objects an image, far apart, one of each class."""
    annotations = [
        {"image_id": image_id, "category_id": category_id, "bbox": [4 + 30 * place, 10 + image_id, 24, 30]}
        for image_id in range(1, IMAGES + 1)
        for place, category_id in enumerate(categories)
    ]
    write_split(root, [(SIDE, SIDE)] * IMAGES, annotations, categories, names)
    return root


def objects(root: Path) -> list[dict[str, Any]]:
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text(encoding="utf-8"))
    annotations: list[dict[str, Any]] = content["annotations"]
    return annotations


def write_found(path: Path, root: Path, without: Sequence[int] = (), jitter: float = 0.0, seed: int = 0) -> Path:
    """A result file that finds every object, except for some categories, with boxes a little off."""
    random = np.random.default_rng(seed)
    found = [
        entry(
            annotation["image_id"],
            annotation["category_id"],
            (np.array(annotation["bbox"]) + random.normal(0, jitter, 4)).tolist(),
            float(random.uniform(0.5, 1)),
        )
        for annotation in objects(root)
    ]
    found = [each for each in found if each["category_id"] not in without]
    path.write_text(json.dumps(found), encoding="utf-8")
    return path
