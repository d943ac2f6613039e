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
CLASSES = {
    "utf-8": ("box", "ball", "bar"),
    "utf-8-sig": ("box", "球", "bar"),
    "utf-16": ("boîte", "球", "bar"),
    "gbk": ("箱子", "圆球", "bar"),
    "cp1252": ("Röhre", "Größe", "bar"),
}
"""Names of the classes in files of each encoding."""
Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""

_OF_ALL = {"no_box": "lost", "empty": "lost", "nan": "lost", "outside": "lost", "unknown_class": "lost"}
_OF_ALL |= {"negative": "either"}
_OF_JSON = {"text": "read", "comma": "read", "crowd": "read"}
FAULTS: dict[str, dict[str, str]] = {
    "coco": {
        **_OF_ALL,
        **_OF_JSON,
        **dict.fromkeys(("polygon", "rle", "counts", "odd_crowd", "repeated_id", "no_id"), "read"),
        **dict.fromkeys(("unknown_image", "cut_rle", "other_rle"), "lost"),
    },
    "yolo": {**_OF_ALL, "comma": "read", "semicolons": "read", "polygon": "either", "words": "lost"},
    "voc": {**_OF_ALL, "comma": "read", "crowd": "read", "exchanged": "either", "blanks": "read"},
    "panoptic": {**_OF_ALL, **_OF_JSON, "odd_crowd": "read", "pixels": "read"},
}
"""What becomes of an object with a fault, by format; never is it read as another, under another class or image."""
IMAGE_FAULTS = {
    "coco": ("gone", "twice", "capitals", "other_case", "url"),
    "yolo": ("gone", "unreadable", "capitals"),
    "voc": ("gone", "unreadable", "capitals", "wrong_name", "no_name"),
    "panoptic": ("gone", "unreadable", "capitals"),
}
TRAITS: dict[str, dict[str, tuple[str, ...]]] = {
    "coco": {"ids": ("", "text", "digits", "mixed", "whole", "same_image_id")},
    "yolo": {"tail": ("", "confidence", "track", "keypoints", "announced"), "listing": ("", "list")},
    "voc": {"listing": ("", "list")},
    "panoptic": {"ids": ("", "text", "digits", "whole")},
}
"""What is so throughout a set; the first is ordinary."""
_OF_THE_BOX = {"empty", "nan", "outside", "negative"}


@dataclasses.dataclass
class PlantedObject:
    """One object: ``fate`` is read, lost or either."""

    image: str
    class_name: str
    box: Box
    fate: str
    fault: str = ""

    @property
    def is_crowd(self) -> bool:
        return self.fault in ("crowd", "odd_crowd")


@dataclasses.dataclass
class PlantedSet:
    """What was written: the objects, how many of them a reader can count, and ids that have to come back."""

    folder: Path
    format: str
    objects: list[PlantedObject]
    counted: int
    images: list[str]
    image_faults: dict[str, str]
    encoding: str
    traits: dict[str, str]
    image_ids: dict[str, int | str] = dataclasses.field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASSES[self.encoding]

    def write(self, name: str, text: str) -> None:
        """Write a text in the encoding of the set."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(self.encoding))

    def lose_image(self, image: str, *, is_counted: bool = True) -> None:
        """Say of the objects of an image that they cannot be read."""
        for item in self.objects:
            if item.image == image:
                item.fate = "lost"
                self.counted -= not is_counted

    def of(self, image: str) -> list[PlantedObject]:
        return [item for item in self.objects if item.image == image]


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

    def pick(ordinary: str, others: tuple[str, ...], chance: float) -> str:
        return str(random.choice(others)) if random.random() < chance else ordinary

    # what holds throughout
    traits = {name: pick(kinds[0], kinds, 0.7) for name, kinds in TRAITS[form].items()}
    encoding = pick("utf-8", tuple(CLASSES), 0.6)
    images = [f"img{number}" for number in range(5)]
    image_faults = {image: pick("", IMAGE_FAULTS[form], rate / 2) for image in images}
    # objects, no two of one size
    objects = []
    for number in range(int(random.integers(8, 18))):
        width, height = 9 + number, 30 - number
        left, top = int(random.integers(0, WIDTH - width)), int(random.integers(0, HEIGHT - height))
        fault = pick("", tuple(FAULTS[form]), rate)
        name, image = str(random.choice(CLASSES[encoding])), str(random.choice(images))
        objects.append(
            PlantedObject(image, name, (left, top, width, height), FAULTS[form].get(fault, "read"), fault)
        )
    planted = PlantedSet(folder, form, objects, len(objects), images, image_faults, encoding, traits)
    _WRITERS[form](planted)
    return planted


def _save(folder: Path, image: str, fault: str) -> str:
    """Save an image unless it is to be missing; return its name as listed."""
    name = f"{image}.PNG" if fault in ("capitals", "other_case") else f"{image}.png"
    folder.mkdir(parents=True, exist_ok=True)
    if fault != "gone":
        Image.fromarray(_pixels(int(image[3:]))).save(folder / name, format="png")
    return f"{image}.png" if fault == "other_case" else name


def _corrupt(box: Box, fault: str) -> list[Any]:
    """Left, top, width and height as the fault has them."""
    left, top, width, height = box
    return {
        "empty": [left, top, 0, height],
        "nan": [left, top, float("nan"), height],
        "outside": [left + 500, top, width, height],
        "negative": [left + width, top + height, -width, -height],
        "exchanged": [left + width, top, -width, height],
    }.get(fault, [left, top, width, height])


def _rle(box: Box, fault: str) -> dict[str, Any]:
    """An RLE of a rectangle: compressed or counted, cut off, or of another size than the image."""
    from pycocotools import mask

    left, top, width, height = box
    pixels = np.zeros((HEIGHT + (fault == "other_rle"), WIDTH), dtype=np.uint8, order="F")
    pixels[top : top + height, left : left + width] = 1
    size = list(pixels.shape)
    if fault == "counts":
        flat = pixels.ravel(order="F")
        starts = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *starts, flat.size]).tolist()
        return {"size": size, "counts": [0, *runs] if flat[0] else runs}
    text = mask.encode(pixels)["counts"].decode()
    return {"size": size, "counts": text[: -1 - width % 5] if fault == "cut_rle" else text}


def _coco_ids(planted: PlantedSet) -> Callable[[str, int], int | str | float]:
    """Ids of images, annotations and categories by their number, as the set writes them."""

    def number(kind: str, value: int) -> int | str | float:
        match planted.traits["ids"]:
            case "text":
                return f"{kind}_{value}"
            case "digits":
                return str(value)
            case "mixed":
                return f"{kind}-{value:03}" if value % 2 else value
            case "whole":
                return float(value)
        return value

    for image in planted.images:
        written = number("i", int(image[3:]) + 1)
        planted.image_ids[image] = int(image[3:]) + 1 if planted.traits["ids"] in ("digits", "whole") else written  # type: ignore[assignment]
    return number


def _box_entry(item: PlantedObject) -> dict[str, Any]:
    """The fields of a box in JSON."""
    box: Any = _corrupt(item.box, item.fault)
    if item.fault == "no_box":
        box = None
    elif item.fault == "comma":
        box = [f"{value},0" for value in item.box]
    elif item.fault == "text":
        box = [str(value) for value in item.box]
    return {"bbox": box, "iscrowd": {"crowd": 1, "odd_crowd": 7}.get(item.fault, 0)}


def _write_coco(planted: PlantedSet) -> None:
    id_of = _coco_ids(planted)
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(planted.objects, start=1):
        left, top, width, height = item.box
        entry: dict[str, Any] = {
            "id": id_of("a", 1 if item.fault == "repeated_id" else number),
            "image_id": id_of("i", 77 if item.fault == "unknown_image" else int(item.image[3:]) + 1),
            "category_id": id_of(
                "c", 77 if item.fault == "unknown_class" else planted.classes.index(item.class_name) + 1
            ),
            **_box_entry(item),
        }
        if item.fault == "polygon":
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            entry |= {"segmentation": [corners]}
        elif item.fault in ("rle", "counts", "cut_rle", "other_rle"):
            entry |= {"segmentation": _rle(item.box, item.fault)}
        elif item.fault == "no_id":
            del entry["id"]
        if "segmentation" in entry:
            del entry["bbox"]
        annotations.append(entry)
    listed = []
    for image in planted.images:
        fault = planted.image_faults[image]
        image_id = id_of("i", int(image[3:]) + 1)
        name = _save(planted.folder / "train", image, fault)
        place = {"coco_url": f"http://images.example/train/{name}"} if fault == "url" else {"file_name": name}
        listed.append({"id": image_id, **place, "width": WIDTH, "height": HEIGHT})
        if fault == "gone":
            planted.lose_image(image)
        elif fault == "twice":  # an entry for the same file, with objects of its own
            listed.append({**listed[-1], "id": id_of("i", 101 + int(image[3:]))})
            mine = [entry for entry in annotations if entry["image_id"] == image_id]
            for entry in mine[1:]:
                entry["image_id"] = listed[-1]["id"]
    if planted.traits["ids"] == "same_image_id":  # nobody can tell the objects of these two
        for entry in [*listed, *annotations]:
            for key in ("id",) if entry in listed else ("image_id",):
                entry[key] = 1 if entry[key] == 2 else entry[key]
        planted.lose_image("img0")
        planted.lose_image("img1")
    categories = [{"id": id_of("c", number), "name": name} for number, name in enumerate(planted.classes, start=1)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    planted.write("train.json", json.dumps(content, ensure_ascii=False))


def _write_yolo(planted: PlantedSet) -> None:
    tail, random = planted.traits["tail"], np.random.default_rng(len(planted.objects))
    lines: dict[str, list[str]] = {image: [] for image in planted.images}
    # what is told from all lines needs boxes that are such
    is_weak = tail not in ("", "announced") and any(item.fault in _OF_THE_BOX for item in planted.objects)
    for item in planted.objects:
        left, top, width, height = _corrupt(item.box, item.fault)
        shares = [(left + width / 2) / WIDTH, (top + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT]
        number = 9 if item.fault == "unknown_class" else planted.classes.index(item.class_name)
        if item.fault == "polygon":
            x, y = (left / WIDTH, (left + width) / WIDTH), (top / HEIGHT, (top + height) / HEIGHT)
            shares = [x[0], y[0], x[1], y[0], x[1], y[1], x[0], y[1]]
        elif tail in ("keypoints", "announced"):
            for flag in (2, 1, 2):
                x, y = item.box[:2] + np.array(item.box[2:]) * random.uniform(0.05, 0.95, 2)
                shares += [x / WIDTH, y / HEIGHT, flag]
        elif tail:
            shares += [random.uniform(0.3, 1), *([item.box[2]] if tail == "track" else [])]
        words = [str(number), *(str(value) for value in shares)]
        if item.fault == "no_box":
            words = words[:3]
        elif item.fault == "words":
            words[2] = "wide"
        elif item.fault == "comma":
            words = [word.replace(".", ",") for word in words]
        lines[item.image].append((";" if item.fault == "semicolons" else " ").join(words))
        if item.fate == "read" and is_weak:
            item.fate = "either"
    names = []
    for image in planted.images:
        fault = planted.image_faults[image]
        names.append(_save(planted.folder / "images" / "train", image, fault))
        label = f"labels/train/{image}.{'TXT' if fault == 'capitals' else 'txt'}"
        if fault == "gone":
            planted.lose_image(image)
        if fault == "unreadable":
            (planted.folder / label).mkdir(parents=True)
            planted.lose_image(image, is_counted=False)
        else:
            planted.write(label, "\n".join(lines[image]) + "\n")
    is_list = planted.traits["listing"] == "list"
    if is_list:
        planted.write("train.txt", "".join(f"./images/train/{name}\n" for name in names))
    content: dict[str, Any] = {"train": "train.txt" if is_list else "images/train", "names": list(planted.classes)}
    content |= {"kpt_shape": [3, 3]} if tail == "announced" else {}
    planted.write("data.yaml", yaml.safe_dump(content, allow_unicode=True))


def _write_voc(planted: PlantedSet) -> None:
    elements: dict[str, list[str]] = {image: [] for image in planted.images}
    for item in planted.objects:
        left, top, width, height = _corrupt(item.box, item.fault)
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), (left, top, left + width, top + height), strict=True))
        style = {"comma": "{},0", "blanks": "\n {}.00\n"}.get(item.fault, "{}")
        box = "".join(f"<{tag}>{style.format(value)}</{tag}>" for tag, value in corners.items())
        name = "" if item.fault == "unknown_class" else f"<name>{item.class_name}</name>"
        bounds = "" if item.fault == "no_box" else f"<bndbox>{box}</bndbox>"
        crowd = "<difficult>1</difficult>" if item.fault == "crowd" else ""
        elements[item.image].append(f"<object>{name}{crowd}{bounds}</object>")
    declared = {"cp1252": "windows-1252", "utf-8-sig": "utf-8"}.get(planted.encoding, planted.encoding)
    for image in planted.images:
        fault = planted.image_faults[image]
        name = _save(planted.folder / "JPEGImages", image, fault)
        said = {"no_name": "", "wrong_name": "<filename>img4.png</filename>"}.get(
            fault, f"<filename>{name}</filename>"
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        text = f"<annotation>{said}{size}{''.join(elements[image])}</annotation>"
        if fault == "gone":
            planted.lose_image(image)
        elif fault == "unreadable":
            text = text[:-20]
            planted.lose_image(image, is_counted=False)
        suffix = "XML" if fault == "capitals" else "xml"
        planted.write(f"Annotations/{image}.{suffix}", f'<?xml version="1.0" encoding="{declared}"?>\n{text}')
    if planted.traits["listing"] == "list":
        planted.write("ImageSets/Main/train.txt", "\n".join(planted.images) + "\n")
    planted.write("labels.txt", "\n".join(planted.classes) + "\n")


def _write_panoptic(planted: PlantedSet) -> None:
    id_of = _coco_ids(planted)
    segments: dict[str, list[dict[str, Any]]] = {image: [] for image in planted.images}
    pixels = {image: np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8) for image in planted.images}
    for number, item in enumerate(planted.objects, start=1):
        category = 77 if item.fault == "unknown_class" else planted.classes.index(item.class_name) + 1
        entry: dict[str, Any] = {"id": number, "category_id": id_of("c", category), **_box_entry(item)}
        if item.fault == "pixels":
            left, top, width, height = item.box
            pixels[item.image][:] = 0
            pixels[item.image][top : top + height, left : left + width] = (number, 1, 0)
            entry |= {"id": number + 256, "bbox": None}
        segments[item.image].append(entry)
    for image in planted.images:  # the last of an image alone has pixels
        for item in [item for item in planted.of(image) if item.fault == "pixels"][:-1]:
            item.fate = "lost"
    folder = planted.folder / "annotations" / "panoptic_train2017"
    folder.mkdir(parents=True)
    listed, annotations = [], []
    for image in planted.images:
        fault, image_id = planted.image_faults[image], id_of("i", int(image[3:]) + 1)
        listed.append({"id": image_id, "file_name": _save(planted.folder / "train2017", image, fault)})
        listed[-1] |= {"width": WIDTH, "height": HEIGHT}
        if fault == "unreadable":  # no entry for it
            planted.lose_image(image, is_counted=False)
            continue
        annotations.append({"image_id": image_id, "file_name": f"{image}.png", "segments_info": segments[image]})
        Image.fromarray(pixels[image]).save(folder / f"{image}.png")
        if fault == "gone":
            planted.lose_image(image)
    categories = [
        {"id": id_of("c", number), "name": name, "isthing": 1}
        for number, name in enumerate(planted.classes, start=1)
    ]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    planted.write("annotations/panoptic_train2017.json", json.dumps(content, ensure_ascii=False))


_WRITERS: dict[str, Callable[[PlantedSet], None]] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
    "voc": _write_voc,
    "panoptic": _write_panoptic,
}
FORMATS = tuple(_WRITERS)
