"""Small data sets of every format with random faults, in which every object can be told by its box."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

WIDTH, HEIGHT = 96, 72
CLASSES = ("box", "ball", "bar")
Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""

LOST = ("no_box", "empty", "nan", "outside", "unknown_class")
"""Faults that leave nothing which could be read as an object."""
UNCLEAR = ("negative", "comma", "polygon")
"""Faults by which an object may be read or left out, but never read as another."""
HARMLESS = ("text", "repeated_id")


@dataclasses.dataclass
class PlantedObject:
    """One object: ``fate`` is read, lost or either."""

    image: str
    class_name: str
    box: Box
    fate: str


@dataclasses.dataclass
class PlantedSet:
    """What was written: the objects, and how many of them a reader can count."""

    folder: Path
    format: str
    objects: list[PlantedObject]
    counted: int


@functools.cache
def _pixels(number: int) -> np.ndarray:
    """Noise that no other image has."""
    return np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def image_of(path: Path) -> str:
    """Stem of the planted image that a file is, by its pixels."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return next(f"img{number}" for number in range(9) if np.array_equal(pixels, _pixels(number)))


def plant(folder: Path, form: str, seed: int, rate: float = 0.3) -> PlantedSet:
    """Write a set of five images of one format, a share of whose objects and images have a fault."""
    random = np.random.default_rng(seed)
    images = [f"img{number}" for number in range(5)]
    objects, faults = [], []
    for number in range(int(random.integers(8, 18))):
        width, height = 9 + number, 30 - number  # no two alike
        left, top = int(random.integers(0, WIDTH - width)), int(random.integers(0, HEIGHT - height))
        name = str(random.choice(CLASSES))
        objects.append(PlantedObject(str(random.choice(images)), name, (left, top, width, height), "read"))
        faults.append(str(random.choice([*LOST, *UNCLEAR, *HARMLESS])) if random.random() < rate else "")
        objects[-1].fate = {**dict.fromkeys(LOST, "lost"), **dict.fromkeys(UNCLEAR, "either")}.get(
            faults[-1], "read"
        )
    image_faults = {
        image: str(random.choice(["gone", "unreadable", "capitals"])) if random.random() < rate / 2 else ""
        for image in images
    }
    planted = PlantedSet(folder, form, objects, len(objects))
    _WRITERS[form](planted, images, faults, image_faults)
    return planted


def _save(folder: Path, image: str, fault: str) -> str:
    """Save an image unless it is to be missing; return its name."""
    name = f"{image}.PNG" if fault == "capitals" else f"{image}.png"
    folder.mkdir(parents=True, exist_ok=True)
    if fault != "gone":
        Image.fromarray(_pixels(int(image[3:]))).save(folder / name, format="png")
    return name


def _corrupt(box: Box, fault: str) -> list[Any]:
    """Left, top, width and height as the fault has them."""
    left, top, width, height = box
    return {
        "empty": [left, top, 0, height],
        "nan": [left, top, float("nan"), height],
        "outside": [left + 500, top, width, height],
        "negative": [left + width, top + height, -width, -height],
    }.get(fault, [left, top, width, height])


def _lose_image(planted: PlantedSet, image: str, *, is_counted: bool = True) -> None:
    """Say of the objects of an image that they cannot be read."""
    for item in planted.objects:
        if item.image == image:
            item.fate = "lost"
            planted.counted -= not is_counted


def _write_coco(planted: PlantedSet, images: list[str], faults: list[str], image_faults: dict[str, str]) -> None:
    annotations = []
    for number, (item, fault) in enumerate(zip(planted.objects, faults, strict=True), start=1):
        left, top, width, height = item.box
        corners = [left, top, left + width, top, left + width, top + height, left, top + height]
        entry = {
            "id": number,
            "image_id": int(item.image[3:]) + 1,
            "category_id": CLASSES.index(item.class_name) + 1,
        }
        entry |= {"bbox": _corrupt(item.box, fault), "iscrowd": 0}
        if fault == "no_box":
            entry["bbox"] = None
        elif fault == "polygon":
            entry |= {"segmentation": [corners]}
            del entry["bbox"]
        elif fault == "comma":
            entry["bbox"] = [f"{value},0" for value in item.box]
        elif fault == "text":
            entry["bbox"] = [str(value) for value in item.box]
        elif fault == "unknown_class":
            entry["category_id" if number % 2 else "image_id"] = 77
        elif fault == "repeated_id":
            entry["id"] = 1
        annotations.append(entry)
    listed = []
    for image in images:
        fault = image_faults[image]
        listed.append({"id": int(image[3:]) + 1, "file_name": _save(planted.folder / "train", image, fault)})
        listed[-1] |= {"width": WIDTH, "height": HEIGHT}
        if fault == "gone":
            _lose_image(planted, image)
        elif fault == "unreadable":  # an entry for the same file, with objects of its own
            listed.append({**listed[-1], "id": 100 + listed[-1]["id"]})
            mine = [entry for entry in annotations if entry["image_id"] == listed[-2]["id"]]
            for entry in mine[1:]:
                entry["image_id"] += 100
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (planted.folder / "train.json").write_text(json.dumps(content))


def _write_yolo(planted: PlantedSet, images: list[str], faults: list[str], image_faults: dict[str, str]) -> None:
    lines: dict[str, list[str]] = {image: [] for image in images}
    for item, fault in zip(planted.objects, faults, strict=True):
        left, top, width, height = _corrupt(item.box, fault)
        shares = [(left + width / 2) / WIDTH, (top + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT]
        words = [str(9 if fault == "unknown_class" else CLASSES.index(item.class_name)), *map(str, shares)]
        if fault == "no_box":
            words = words[:3]
        elif fault == "comma":
            words = [word.replace(".", ",") for word in words]
        elif fault == "polygon":
            x, y = (left / WIDTH, (left + width) / WIDTH), (top / HEIGHT, (top + height) / HEIGHT)
            words[1:] = map(str, (x[0], y[0], x[1], y[0], x[1], y[1], x[0], y[1]))
        lines[item.image].append(" ".join(words))
    labels = planted.folder / "labels" / "train"
    labels.mkdir(parents=True)
    for image in images:
        fault = image_faults[image]
        _save(planted.folder / "images" / "train", image, fault)
        if fault == "gone":
            _lose_image(planted, image)
        if fault == "unreadable":
            (labels / f"{image}.txt").mkdir()
            _lose_image(planted, image, is_counted=False)
        else:
            suffix = "TXT" if fault == "capitals" else "txt"
            (labels / f"{image}.{suffix}").write_text("\n".join(lines[image]) + "\n")
    content = {"train": "images/train", "names": list(CLASSES)}
    (planted.folder / "data.yaml").write_text(yaml.safe_dump(content))


def _write_voc(planted: PlantedSet, images: list[str], faults: list[str], image_faults: dict[str, str]) -> None:
    elements: dict[str, list[str]] = {image: [] for image in images}
    for item, fault in zip(planted.objects, faults, strict=True):
        left, top, width, height = _corrupt(item.box, fault)
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), (left, top, left + width, top + height), strict=True))
        texts = {tag: f"{value},0" if fault == "comma" else str(value) for tag, value in corners.items()}
        box = "".join(f"<{tag}>{text}</{tag}>" for tag, text in texts.items())
        name = "" if fault == "unknown_class" else f"<name>{item.class_name}</name>"
        bounds = "" if fault == "no_box" else f"<bndbox>{box}</bndbox>"
        elements[item.image].append(f"<object>{name}{bounds}</object>")
    folder = planted.folder / "Annotations"
    folder.mkdir(parents=True)
    for image in images:
        fault = image_faults[image]
        name = _save(planted.folder / "JPEGImages", image, fault)
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        text = f"<annotation><filename>{name}</filename>{size}{''.join(elements[image])}</annotation>"
        if fault == "gone":
            _lose_image(planted, image)
        elif fault == "unreadable":
            text = text[:-20]
            _lose_image(planted, image, is_counted=False)
        (folder / (f"{image}.XML" if fault == "capitals" else f"{image}.xml")).write_text(text)
    (planted.folder / "labels.txt").write_text("\n".join(CLASSES) + "\n")


def _write_panoptic(
    planted: PlantedSet, images: list[str], faults: list[str], image_faults: dict[str, str]
) -> None:
    segments: dict[str, list[dict[str, Any]]] = {image: [] for image in images}
    for number, (item, fault) in enumerate(zip(planted.objects, faults, strict=True), start=1):
        entry: dict[str, Any] = {"id": number, "category_id": CLASSES.index(item.class_name) + 1, "iscrowd": 0}
        entry["bbox"] = None if fault == "no_box" else _corrupt(item.box, fault)
        if fault == "unknown_class":
            entry["category_id"] = 77
        segments[item.image].append(entry)
    folder = planted.folder / "annotations" / "panoptic_train2017"
    folder.mkdir(parents=True)
    listed, annotations = [], []
    for image in images:
        fault, number = image_faults[image], int(image[3:]) + 1
        listed.append({"id": number, "file_name": _save(planted.folder / "train2017", image, fault)})
        listed[-1] |= {"width": WIDTH, "height": HEIGHT}
        if fault == "unreadable":  # no entry for it
            _lose_image(planted, image, is_counted=False)
            continue
        annotations.append({"image_id": number, "file_name": f"{image}.png", "segments_info": segments[image]})
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{image}.png")
        if fault == "gone":
            _lose_image(planted, image)
    categories = [{"id": number, "name": name, "isthing": 1} for number, name in enumerate(CLASSES, start=1)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (planted.folder / "annotations" / "panoptic_train2017.json").write_text(json.dumps(content))


_WRITERS: dict[str, Callable[[PlantedSet, list[str], list[str], dict[str, str]], None]] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
    "voc": _write_voc,
    "panoptic": _write_panoptic,
}
FORMATS = tuple(_WRITERS)
