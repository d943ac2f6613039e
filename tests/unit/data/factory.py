"""Small data sets on disk for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def image_entry(image_id: int = 1, name: str | None = None, height: int = 40, width: int = 60) -> dict[str, Any]:
    return {"id": image_id, "file_name": name or f"{image_id}.png", "height": height, "width": width}


def annotation(annotation_id: int = 1, image_id: int = 1, **fields: Any) -> dict[str, Any]:
    entry = {"id": annotation_id, "image_id": image_id, "category_id": 7, "bbox": [5, 6, 20, 10], "iscrowd": 0}
    return {**entry, **fields}


def coco(
    images: Sequence[Mapping[str, Any]], annotations: Sequence[Any], categories: Sequence[Any] = CATEGORIES
) -> dict[str, Any]:
    return {"images": list(images), "annotations": list(annotations), "categories": list(categories)}


def write(folder: Path, content: Any, *, files: bool = True) -> Path:
    """Write a COCO JSON file and, beside it, a PNG of noise for every listed image."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    for entry in content["images"] if files else ():
        target = folder / str(entry["file_name"])
        target.parent.mkdir(parents=True, exist_ok=True)
        write_noise(target, entry["height"], entry["width"], seed=int(entry["id"]))
    return path


def write_noise(path: Path, height: int, width: int, seed: int = 0) -> None:
    random = np.random.Generator(np.random.PCG64(seed))
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
