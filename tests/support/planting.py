"""Faults to plant in a data set in COCO layout, one planter for each kind that `detrkit data check` names."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

Key = tuple[Any, ...]


@dataclasses.dataclass
class DataCopy:
    """A copy of a data set in COCO layout that may be spoiled.

    Args:
        root: Its folder.
        random: Chooses places.
        count: Faults to plant of a kind.
    """

    root: Path
    random: np.random.Generator
    count: int
    contents: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for file in sorted((self.root / "annotations").glob("instances_*.json")):
            self.contents[file.stem.removeprefix("instances_")] = json.loads(file.read_text())

    def save(self) -> None:
        """Write the annotations back."""
        for split, content in self.contents.items():
            (self.root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))

    @property
    def first(self) -> str:
        """The split that most faults go to."""
        return "train" if "train" in self.contents else next(iter(self.contents))

    def entries(self, key: str = "images") -> list[dict[str, Any]]:
        """Entries of the first split."""
        entries: list[dict[str, Any]] = self.contents[self.first][key]
        return entries

    def choose(self, key: str, accept: Callable[[dict[str, Any]], bool] = lambda _: True) -> list[int]:
        """Rows of entries to spoil."""
        rows = [row for row, entry in enumerate(self.entries(key)) if accept(entry)]
        return sorted(self.random.permutation(rows)[: self.count].tolist())

    def file(self, row: int, split: str | None = None) -> Path:
        """Image file of a row, unlinked from the original."""
        split = split or self.first
        path = self.root / split / self.contents[split]["images"][row]["file_name"]
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        return path

    def sizes(self) -> dict[int, tuple[int, int]]:
        """Width and height by image id."""
        return {entry["id"]: (entry["width"], entry["height"]) for entry in self.entries()}

    def ordinary(self, entry: dict[str, Any]) -> bool:
        """Whether an annotation is an object of some size, away from the corner."""
        x, y, width, height = entry["bbox"]
        return bool(not entry.get("iscrowd") and min(width, height) > 12 and min(x, y) > 4)


Planter = Callable[[DataCopy], set[Key]]


def annotation_planter(
    spoil: Callable[[DataCopy, dict[str, Any]], None], keep_mask: bool = False, with_mask: bool = False
) -> Planter:
    """Spoil some annotations, one by one."""

    def plant(data: DataCopy) -> set[Key]:
        def fit(entry: dict[str, Any]) -> bool:
            return data.ordinary(entry) and (not with_mask or bool(entry.get("segmentation")))

        rows = data.choose("annotations", fit)
        for row in rows:
            entry = data.entries("annotations")[row]
            if not keep_mask:
                entry.pop("segmentation", None)
            spoil(data, entry)
        return {("annotation", data.first, row) for row in rows}

    return plant


def all_boxes_planter(spoil: Callable[[DataCopy, dict[str, Any]], None]) -> Planter:
    """Spoil every box of a split, as a wrong export does."""

    def plant(data: DataCopy) -> set[Key]:
        for entry in data.entries("annotations"):
            entry.pop("segmentation", None)
            spoil(data, entry)
        return {("annotation", data.first, row) for row in range(len(data.entries("annotations")))}

    return plant


def corners_planter() -> Planter:
    """Write some boxes as corners that reach far out of the image if they are taken for sizes."""

    def plant(data: DataCopy) -> set[Key]:
        sizes = data.sizes()

        def shows(entry: dict[str, Any]) -> bool:
            x, y, width, height = entry["bbox"]
            side = sizes[entry["image_id"]]
            return data.ordinary(entry) and (2 * x + width > 1.1 * side[0] or 2 * y + height > 1.1 * side[1])

        rows = data.choose("annotations", shows)
        for row in rows:
            entry = data.entries("annotations")[row]
            entry.pop("segmentation", None)
            entry["bbox"] = _corners(entry["bbox"], (0, 0))
        return {("annotation", data.first, row) for row in rows}

    return plant


def image_planter(
    spoil: Callable[[DataCopy, int], None], accept: Callable[[dict[str, Any]], bool] = lambda _: True
) -> Planter:
    """Spoil some images, one by one."""

    def plant(data: DataCopy) -> set[Key]:
        rows = data.choose("images", accept)
        for row in rows:
            spoil(data, row)
        return {("image", data.first, row) for row in rows}

    return plant


def _set_box(
    change: Callable[[list[float], tuple[int, int]], list[float]],
) -> Callable[[DataCopy, dict[str, Any]], None]:
    def spoil(data: DataCopy, entry: dict[str, Any]) -> None:
        entry["bbox"] = change(entry["bbox"], data.sizes()[entry["image_id"]])

    return spoil


def _set(field: str, value: Any) -> Callable[[DataCopy, dict[str, Any]], None]:
    def spoil(_data: DataCopy, entry: dict[str, Any]) -> None:
        entry[field] = value

    return spoil


def _corners(box: list[float], _size: tuple[int, int]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _centre(box: list[float], _size: tuple[int, int]) -> list[float]:
    x, y, width, height = box
    return [x + width / 2, y + height / 2, width, height]


def _normalised(box: list[float], size: tuple[int, int]) -> list[float]:
    return [value / size[axis % 2] for axis, value in enumerate(box)]


def _truncate(data: DataCopy, row: int) -> None:
    path = data.file(row)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])


def _not_an_image(data: DataCopy, row: int) -> None:
    data.file(row).write_bytes(b"<!doctype html><html><body>404 Not Found</body></html>")


def _mislabel(data: DataCopy, row: int) -> None:
    path = data.file(row)
    with Image.open(path) as image:
        image.load()
        image.save(path, format="BMP" if path.suffix == ".png" else "PNG")


def _turn(data: DataCopy, row: int) -> None:
    """Store the image on its side, with the EXIF tag that says so."""
    path = data.file(row)
    with Image.open(path) as image:
        turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(path, format="JPEG", exif=exif, quality=95)
    entry = data.entries()[row]
    entry["width"], entry["height"] = turned.size


def _resize_listed(data: DataCopy, row: int) -> None:
    entry = data.entries()[row]
    entry["width"], entry["height"] = entry["width"] + 37, entry["height"] + 11


def _other_case(data: DataCopy, row: int) -> None:
    entry = data.entries()[row]
    entry["file_name"] = entry["file_name"].swapcase()


def _prefix(text: str) -> Callable[[DataCopy, int], None]:
    def spoil(data: DataCopy, row: int) -> None:
        entry = data.entries()[row]
        entry["file_name"] = text + entry["file_name"]

    return spoil


def plant_annotation_ids(data: DataCopy) -> set[Key]:
    entries = data.entries("annotations")
    rows = [row for row in data.choose("annotations") if row > 0]
    for row in rows:
        entries[row]["id"] = entries[0]["id"]
    return {("annotation", data.first, row) for row in rows}


def plant_image_ids(data: DataCopy) -> set[Key]:
    entries = data.entries()
    rows = [row for row in data.choose("images") if row > 0]
    for row in rows:
        entries[row]["id"] = entries[0]["id"]
    return {("image", data.first, row) for row in rows}


def plant_listed_twice(data: DataCopy) -> set[Key]:
    entries = data.entries()
    start, top = len(entries), max(entry["id"] for entry in entries) + 1
    rows = data.choose("images")
    entries += [{**entries[row], "id": top + at} for at, row in enumerate(rows)]
    return {("image", data.first, start + at) for at in range(len(rows))}


def plant_category_ids(data: DataCopy) -> set[Key]:
    for content in data.contents.values():
        content["categories"].append({"id": content["categories"][0]["id"], "name": "planted"})
    return {("count", len(data.contents))}


def plant_class_name(change: Callable[[str], str]) -> Planter:
    """Give a class a second category under another spelling, with half of its annotations, in all splits."""

    def plant(data: DataCopy) -> set[Key]:
        used = [entry["category_id"] for entry in data.entries("annotations")]
        old = max(data.entries("categories"), key=lambda entry: used.count(entry["id"]))
        new_id = max(entry["id"] for entry in data.entries("categories")) + 1
        for content in data.contents.values():
            content["categories"].append({**old, "id": new_id, "name": change(old["name"])})
            for number, entry in enumerate(content["annotations"]):
                if entry["category_id"] == old["id"] and number % 2:
                    entry["category_id"] = new_id
        return {("count", 1)}

    return plant


def plant_swapped_names(data: DataCopy) -> set[Key]:
    split = list(data.contents)[-1]
    categories = data.contents[split]["categories"]
    categories[0]["name"], categories[1]["name"] = categories[1]["name"], categories[0]["name"]
    return {("count", 2)}


def plant_shorter_list(data: DataCopy) -> set[Key]:
    content = data.contents[next(name for name in data.contents if name != data.first)]
    gone = content["categories"].pop()
    content["annotations"] = [e for e in content["annotations"] if e["category_id"] != gone["id"]]
    return {("count", 1)}


def plant_gap(data: DataCopy) -> set[Key]:
    _renumber(data, lambda number: number * 3 + 1)
    return {("count", 1)}


def plant_from(start: int) -> Planter:
    def plant(data: DataCopy) -> set[Key]:
        _renumber(data, lambda number: number + start)
        return {("count", 1)}

    return plant


def _renumber(data: DataCopy, new_id: Callable[[int], int]) -> None:
    for content in data.contents.values():
        order = {entry["id"]: new_id(number) for number, entry in enumerate(content["categories"])}
        for entry in content["categories"]:
            entry["id"] = order[entry["id"]]
        for entry in content["annotations"]:
            entry["category_id"] = order[entry["category_id"]]


def plant_copies(data: DataCopy) -> set[Key]:
    entries = data.entries("annotations")
    start, top = len(entries), max(entry["id"] for entry in entries) + 1
    rows = data.choose("annotations", data.ordinary)
    entries += [{**entries[row], "id": top + at} for at, row in enumerate(rows)]
    return {("annotation", data.first, start + at) for at in range(len(rows))}


def plant_two_classes(data: DataCopy) -> set[Key]:
    entries, ids = data.entries("annotations"), [entry["id"] for entry in data.entries("categories")]
    start, top = len(entries), max(entry["id"] for entry in entries) + 1
    rows = data.choose("annotations", data.ordinary)
    for at, row in enumerate(rows):
        other = next(number for number in ids if number != entries[row]["category_id"])
        entries.append({**entries[row], "id": top + at, "category_id": other})
    return {("annotation", data.first, start + at) for at in range(len(rows))}


def plant_leak(change: Callable[[Image.Image], Image.Image] | None) -> Planter:
    """Put images of another split into the first, as they are or changed a little, with their annotations."""

    def plant(data: DataCopy) -> set[Key]:
        other = [name for name in data.contents if name != data.first][-1]
        source, entries = data.contents[other], data.entries()
        annotations = data.entries("annotations")
        rows = data.random.permutation(len(source["images"]))[: data.count].tolist()
        keys: set[Key] = set()
        for row in rows:
            entry = source["images"][row]
            image_id = max(other["id"] for other in entries) + 1
            name = f"planted-{row}.jpg"
            path, target = data.root / other / entry["file_name"], data.root / data.first / name
            size = {"width": entry["width"], "height": entry["height"]}
            scale = 1.0
            if change is None:
                os.link(path, target)
            else:
                with Image.open(path) as image:
                    changed = change(image.convert("RGB"))
                changed.save(target, quality=70)
                scale = changed.width / image.width
                size = {"width": changed.width, "height": changed.height}
            keys.add(("image", data.first, len(entries)))
            entries.append({"id": image_id, "file_name": name, **size})
            for annotation in source["annotations"]:
                if annotation["image_id"] == entry["id"]:
                    number = max(one["id"] for one in annotations) + 1
                    box = [value * scale for value in annotation["bbox"]]
                    area = annotation["area"] * scale * scale
                    new = {"id": number, "image_id": image_id, "bbox": box, "area": area}
                    annotations.append({**{k: annotation[k] for k in ("category_id", "iscrowd")}, **new})
        return keys

    return plant


def plant_only_one_split(data: DataCopy) -> set[Key]:
    new_id = max(entry["id"] for entry in data.entries("categories")) + 1
    for content in data.contents.values():
        content["categories"].append({"id": new_id, "name": "planted"})
    used = [entry["category_id"] for entry in data.entries("annotations")]
    common = max(set(used), key=used.count)
    for row in data.choose("annotations", lambda entry: entry["category_id"] == common):
        data.entries("annotations")[row]["category_id"] = new_id
    return {("count", 1)}


def plant_many_objects(data: DataCopy) -> set[Key]:
    row = data.choose("images")[0]
    image, entries = data.entries()[row], data.entries("annotations")
    top = max(entry["id"] for entry in entries) + 1
    for number in range(120):
        x, y = 2 + number % 12 * 3, 2 + number // 12 * 3
        box = [x, y, 10 + number % 7, 10]
        new = {"id": top + number, "image_id": image["id"], "bbox": box, "area": box[2] * 10, "iscrowd": 0}
        entries.append({**new, "category_id": data.entries("categories")[0]["id"]})
    return {("image", data.first, row)}


def plant_cut_json(data: DataCopy) -> set[Key]:
    data.save()
    path = data.root / "annotations" / f"instances_{data.first}.json"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    data.contents.clear()
    return {("count", 1)}


def _shift_mask(data: DataCopy, entry: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    moved = [x / 2, y / 2, x / 2 + width / 2, y / 2 + height / 3]
    left, top, right, bottom = moved
    entry["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]


def _short_polygon(_data: DataCopy, entry: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    entry["segmentation"] = [[x, y, x + width, y + height]]


def _mask_outside(data: DataCopy, entry: dict[str, Any]) -> None:
    x, y, _, height = entry["bbox"]
    right = data.sizes()[entry["image_id"]][0] + 50
    entry["segmentation"] = [[x, y, right, y, right, y + height, x, y + height]]


def _bad_rle(_data: DataCopy, entry: dict[str, Any]) -> None:
    entry["segmentation"] = {"size": [7, 9], "counts": [10, 5, 48]}


def _out(box: list[float], size: tuple[int, int]) -> list[float]:
    return [size[0] + 5, box[1], box[2], box[3]]


def _over(box: list[float], size: tuple[int, int]) -> list[float]:
    return [size[0] - box[2] / 2 - 4, box[1], box[2] + 8, box[3]]


PLANTERS: dict[str, Sequence[tuple[str, Planter, frozenset[str]]]] = {}
"""For each kind of finding: what is done, how, and other kinds that rightly come with it."""


def _add(kind: str, words: str, planter: Planter, *others: str) -> None:
    PLANTERS[kind] = (*PLANTERS.get(kind, ()), (words, planter, frozenset(others)))


_add("annotations_unreadable", "JSON cut off", plant_cut_json)
_add("image_empty", "0 bytes", image_planter(lambda data, row: void(data.file(row).write_bytes(b""))))
_add("image_truncated", "cut at 60 %", image_planter(_truncate))
_add("image_unreadable", "a web page", image_planter(_not_an_image))
_add("image_mislabelled", "PNG under another name", image_planter(_mislabel))
_add("missing_image", "file deleted", image_planter(lambda data, row: data.file(row).unlink()))
_add("file_name_case", "upper case", image_planter(_other_case))
_add("absolute_file_name", "/data/...", image_planter(_prefix("/data/set/")))
_add("escaping_file_name", "../...", image_planter(_prefix("../../")))
_add("size_mismatch", "other size in the JSON", image_planter(_resize_listed))
_add(
    "exif_rotated_size",
    "stored on its side",
    image_planter(_turn, lambda entry: entry["width"] != entry["height"]),
)
_add("missing_size", "no width", image_planter(lambda data, row: void(data.entries()[row].pop("width"))))
_add("duplicate_image_ids", "id of the first image", plant_image_ids, "unknown_image_id")
_add("duplicate_annotation_ids", "id of the first annotation", plant_annotation_ids)
_add("duplicate_category_ids", "a second class under an id", plant_category_ids)
_add("image_listed_twice", "entry repeated", plant_listed_twice)
_add("unknown_image_id", "image 987654321", annotation_planter(_set("image_id", 987654321)))
_add("unknown_category_id", "category 987654", annotation_planter(_set("category_id", 987654)))
_add("category_ids_with_gaps", "every third number", plant_gap)
_add("category_ids_from_0", "from 0", plant_from(0))
_add("category_ids_from_1", "from 1", plant_from(1))
_add("duplicate_class_names", "same name", plant_class_name(lambda name: name))
_add("class_names_differ_by_case", "upper case", plant_class_name(lambda name: name.upper()))
_add(
    "class_names_differ_by_case",
    "space at the end",
    plant_class_name(lambda name: name + " "),
    "class_name_spaces",
)
_add("class_ids_differ", "two names exchanged", plant_swapped_names)
_add("class_lists_differ", "a class not listed", plant_shorter_list)
_add("class_in_one_split", "a new class in one split", plant_only_one_split)
_add("rare_class", "a class with few objects", plant_only_one_split)
_add("box_empty", "width 0", annotation_planter(_set_box(lambda box, _: [*box[:2], 0, box[3]])))
_add(
    "box_negative",
    "negative size",
    annotation_planter(_set_box(lambda b, _: [b[0] + b[2], b[1] + b[3], -b[2], -b[3]])),
)
_add("box_outside", "right of the image", annotation_planter(_set_box(_out)))
_add("box_leaves_image", "over the right edge", annotation_planter(_set_box(_over)))
_add(
    "box_larger_than_image",
    "wider than the image",
    annotation_planter(_set_box(lambda box, size: [2, box[1], size[0] * 1.5, box[3]])),
)
_add("box_missing", "null", annotation_planter(_set("bbox", None)))
_add("box_not_finite", "text", annotation_planter(lambda _, entry: entry["bbox"].__setitem__(2, "wide")))
_add("box_xyxy", "all boxes as corners", all_boxes_planter(_set_box(_corners)))
_add("box_xyxy", "some, masks at hand", annotation_planter(_set_box(_corners), keep_mask=True, with_mask=True))
_add("box_xyxy", "some, far out of the image", corners_planter())
_add("box_cxcywh", "some, masks at hand", annotation_planter(_set_box(_centre), keep_mask=True, with_mask=True))
_add("box_cxcywh", "all boxes by their centre", all_boxes_planter(_set_box(_centre)))
_add("box_normalised", "all boxes normalised", all_boxes_planter(_set_box(_normalised)))
_add("box_normalised", "some boxes normalised", annotation_planter(_set_box(_normalised)))
_add("duplicate_boxes", "annotation repeated", plant_copies)
_add("boxes_with_two_classes", "box under another class", plant_two_classes)
_add(
    "area_wrong",
    "area ten times the box",
    annotation_planter(lambda _, e: e.update(area=10 * e["bbox"][2] * e["bbox"][3])),
)
_add("mask_box_mismatch", "mask elsewhere", annotation_planter(_shift_mask, keep_mask=True))
_add("mask_polygon_short", "two points", annotation_planter(_short_polygon, keep_mask=True))
_add("mask_outside_image", "mask over the edge", annotation_planter(_mask_outside, keep_mask=True))
_add("mask_unreadable", "RLE of another size", annotation_planter(_bad_rle, keep_mask=True))
_add("image_in_two_splits", "same bytes", plant_leak(None))
_add("near_duplicate_in_two_splits", "compressed again", plant_leak(lambda image: image))
_add(
    "near_duplicate_in_two_splits",
    "half the size",
    plant_leak(lambda image: image.resize((image.width // 2, image.height // 2))),
)
_add(
    "near_duplicate_in_two_splits",
    "brighter",
    plant_leak(lambda image: ImageEnhance.Brightness(image).enhance(1.2)),
)
_add("more_objects_than_queries", "120 objects", plant_many_objects)


def void(_value: object) -> None:
    """Nothing: makes an expression a statement."""
