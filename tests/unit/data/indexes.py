"""Small indexes without files, for tests of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detrkit.classes import ClassMap
from detrkit.data.index import CocoIndex, pack_names

Object = tuple[int, tuple[float, float, float, float]]


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
