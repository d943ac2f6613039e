"""Small splits on disk, for tests of what detects on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrkit.config import Config
from detrkit.data.split import Split, read_split


def write_split(
    root: Path,
    sizes_hw: Sequence[tuple[int, int]],
    annotations: Sequence[Mapping[str, Any]] = (),
    categories: Mapping[int, str] | None = None,
    names: Mapping[int, str] | None = None,
) -> Path:
    """A data set in COCO's layout with images of noise; ids are 1, 2, 3, ..."""
    folder = root / "val2017"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir()
    random = np.random.default_rng(0)
    images = []
    for number, (height, width) in enumerate(sizes_hw, start=1):
        name = (names or {}).get(number, f"{number:04}.png")
        # Blocks rather than single pixels: something is left after resizing.
        blocks = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        pixels = np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width]
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    filled = [
        {"id": i, "iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a}
        for i, a in enumerate(annotations, start=1)
    ]
    content = {
        "images": images,
        "annotations": filled,
        "categories": [{"id": i, "name": name} for i, name in (categories or {1: "cat", 7: "dog"}).items()],
    }
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def split_of(root: Path) -> Split:
    return read_split(Config(), "val", root, strict=True)


def entry(image_id: int, category_id: int, box: Sequence[float], score: float = 0.5) -> dict[str, Any]:
    """An entry of a COCO result file."""
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}
