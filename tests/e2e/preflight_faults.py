"""Faults planted into a COCO data set on disk, one at a time, for the tests of preflight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Content = dict[str, Any]
Plant = Callable[[Content, np.random.Generator], None]


def labels_shuffled(content: Content, random: np.random.Generator) -> None:
    classes = [entry["category_id"] for entry in content["annotations"]]
    for entry, category_id in zip(content["annotations"], random.permutation(classes).tolist(), strict=True):
        entry["category_id"] = category_id


def xyxy_as_xywh(content: Content, random: np.random.Generator) -> None:
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        entry["bbox"] = [x, y, x + width, y + height]


def normalised(content: Content, random: np.random.Generator) -> None:
    sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in content["images"]}
    for entry in content["annotations"]:
        width, height = sizes[entry["image_id"]]
        entry["bbox"] = [entry["bbox"][part] / (width, height)[part % 2] for part in range(4)]


def boxes_of_other_images(content: Content, random: np.random.Generator) -> None:
    ids = [entry["id"] for entry in content["images"]]
    other = dict(zip(ids, np.roll(ids, 7).tolist(), strict=True))
    for entry in content["annotations"]:
        entry["image_id"] = other[entry["image_id"]]


def ids_one_too_low(content: Content, random: np.random.Generator) -> None:
    for entry in content["annotations"]:
        entry["category_id"] -= 1


def all_empty(content: Content, random: np.random.Generator) -> None:
    content["annotations"] = []


PLANTS: dict[str, tuple[Plant, set[str]]] = {
    "labels shuffled": (labels_shuffled, {"labels_shuffled"}),
    "xyxy as xywh": (xyxy_as_xywh, {"box_xyxy"}),
    "normalised": (normalised, {"box_normalised"}),
    "other images": (boxes_of_other_images, {"boxes_mark_nothing"}),
    "ids too low": (ids_one_too_low, {"class_ids_off_by_one"}),
    "all empty": (all_empty, {"no_objects"}),
}


def plant(source: Path, folder: Path, change: Plant, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """A copy of a COCO 2017 data set with a fault in some of its splits."""
    shutil.copytree(source, folder)
    for split in splits:
        path = folder / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content, np.random.Generator(np.random.PCG64(3)))
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder
