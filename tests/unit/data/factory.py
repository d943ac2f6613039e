"""Small data sets: on disk, and indexes without files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrkit.classes import ClassMap
from detrkit.data.index import CocoIndex, pack_names

Object = tuple[int, tuple[float, float, float, float]]
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


def make_index(
    images: Sequence[Sequence[Object]],
    sizes_hw: Sequence[tuple[int, int]] | None = None,
    names: Sequence[str] = ("cat", "dog", "fox"),
    crowd: Sequence[bool] | None = None,
    area: Sequence[float] | None = None,
) -> CocoIndex:
    """An index of objects given as class id and box (left, top, right, bottom), image by image."""
    objects = [item for image in images for item in image]
    boxes = np.array([box for _, box in objects], dtype=np.float64).reshape(-1, 4)
    name_bytes, name_offsets = pack_names([f"{row}.png" for row in range(len(images))])
    return CocoIndex(
        image_ids=np.arange(len(images), dtype=np.int64) + 100,
        name_bytes=name_bytes,
        name_offsets=name_offsets,
        sizes_hw=np.array(sizes_hw or [(100, 200)] * len(images), dtype=np.int32).reshape(-1, 2),
        offsets=np.cumsum([0, *map(len, images)], dtype=np.int64),
        boxes_xyxy=boxes,
        labels=np.array([label for label, _ in objects], dtype=np.int64),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) if area is None else np.array(area, dtype=np.float64),
        iscrowd=np.zeros(len(objects), dtype=bool) if crowd is None else np.array(crowd, dtype=bool),
        annotation_ids=np.arange(len(objects), dtype=np.int64) + 1,
        class_map=ClassMap(tuple(names), tuple(range(1, len(names) + 1))),
    )


def labelled(labels: Sequence[Sequence[int]], num_classes: int = 3) -> CocoIndex:
    """An index in which only the classes of each image matter."""
    box = (0.0, 0.0, 10.0, 10.0)
    names = [f"class {number}" for number in range(num_classes)]
    return make_index([[(label, box) for label in image] for image in labels], names=names)


def voc_xml(
    file_name: str, objects: Iterable[tuple[Any, ...]], size: tuple[int, int] | None = (40, 60), extra: str = ""
) -> str:
    """An annotation file; objects are name, four corners and perhaps whether they are difficult."""
    height, width = size or (0, 0)
    parts = [f"<annotation><filename>{file_name}</filename>{extra}"]
    if size is not None:
        parts.append(f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    for name, *corners in objects:
        difficult = f"<difficult>{corners[4]}</difficult>" if len(corners) > 4 else ""
        tags = zip(("ymax", "xmax", "ymin", "xmin"), corners[3::-1], strict=True)  # in an unusual order
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
        parts.append(f"<object><name>{name}</name>{difficult}<bndbox>{box}</bndbox></object>")
    return "".join(parts) + "</annotation>"
