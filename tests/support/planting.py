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


Spoil = Callable[[DataCopy, dict[str, Any]], None]
Planter = Callable[[DataCopy], set[Key]]


def annotation_planter(
    spoil: Spoil, accept: Callable[[DataCopy, dict[str, Any]], bool] = DataCopy.ordinary, keep_mask: bool = False
) -> Planter:
    """Spoil some annotations, one by one."""

    def plant(data: DataCopy) -> set[Key]:
        rows = data.choose("annotations", lambda entry: accept(data, entry))
        return _spoil_rows(data, rows, spoil, keep_mask)

    return plant


def all_boxes_planter(spoil: Spoil) -> Planter:
    """Spoil every box of a split, as a wrong export does."""
    return lambda data: _spoil_rows(data, range(len(data.entries("annotations"))), spoil)


def _spoil_rows(data: DataCopy, rows: Sequence[int], spoil: Spoil, keep_mask: bool = False) -> set[Key]:
    for row in rows:
        entry = data.entries("annotations")[row]
        if not keep_mask:
            entry.pop("segmentation", None)
        spoil(data, entry)
    return {("annotation", data.first, row) for row in rows}


def _with_mask(data: DataCopy, entry: dict[str, Any]) -> bool:
    return data.ordinary(entry) and bool(entry.get("segmentation"))


def _shows_corners(data: DataCopy, entry: dict[str, Any]) -> bool:
    """Whether corners would reach far out of the image if they were taken for sizes."""
    x, y, width, height = entry["bbox"]
    side = data.sizes()[entry["image_id"]]
    return data.ordinary(entry) and (2 * x + width > 1.1 * side[0] or 2 * y + height > 1.1 * side[1])


def image_planter(
    spoil: Callable[[DataCopy, int], object], accept: Callable[[dict[str, Any]], bool] = lambda _: True
) -> Planter:
    """Spoil some images, one by one."""

    def plant(data: DataCopy) -> set[Key]:
        rows = data.choose("images", accept)
        for row in rows:
            spoil(data, row)
        return {("image", data.first, row) for row in rows}

    return plant


def same_id_planter(kind: str) -> Planter:
    """Give some entries the id of the first one."""

    def plant(data: DataCopy) -> set[Key]:
        entries = data.entries(f"{kind}s")
        rows = [row for row in data.choose(f"{kind}s") if row > 0]
        for row in rows:
            entries[row]["id"] = entries[0]["id"]
        return {(kind, data.first, row) for row in rows}

    return plant


def repeat_planter(
    kind: str,
    accept: Callable[[DataCopy, dict[str, Any]], bool],
    change: Callable[[DataCopy, dict[str, Any]], dict[str, Any]] = lambda _data, _entry: {},
) -> Planter:
    """List some entries again at the end, under a new id and perhaps changed."""

    def plant(data: DataCopy) -> set[Key]:
        entries = data.entries(f"{kind}s")
        start, top = len(entries), _free_id(entries)
        rows = data.choose(f"{kind}s", lambda entry: accept(data, entry))
        entries += [{**entries[row], "id": top + at, **change(data, entries[row])} for at, row in enumerate(rows)]
        return {(kind, data.first, start + at) for at in range(len(rows))}

    return plant


def _other_class(data: DataCopy, entry: dict[str, Any]) -> dict[str, Any]:
    ids = (one["id"] for one in data.entries("categories"))
    return {"category_id": next(number for number in ids if number != entry["category_id"])}


def _free_id(entries: Sequence[dict[str, Any]]) -> int:
    return 1 + max(int(entry["id"]) for entry in entries)


def _set_box(change: Callable[[list[float], tuple[int, int]], list[float]]) -> Spoil:
    def spoil(data: DataCopy, entry: dict[str, Any]) -> None:
        entry["bbox"] = change(entry["bbox"], data.sizes()[entry["image_id"]])

    return spoil


def _set(**fields: Any) -> Spoil:
    return lambda _data, entry: entry.update(fields)


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


def _rename(change: Callable[[str], str]) -> Callable[[DataCopy, int], None]:
    def spoil(data: DataCopy, row: int) -> None:
        entry = data.entries()[row]
        entry["file_name"] = change(entry["file_name"])

    return spoil


def plant_category_ids(data: DataCopy) -> set[Key]:
    for content in data.contents.values():
        content["categories"].append({"id": content["categories"][0]["id"], "name": "planted"})
    return {("count", len(data.contents))}


def plant_class_name(change: Callable[[str], str]) -> Planter:
    """Give a class a second category under another spelling, with half of its annotations, in all splits."""

    def plant(data: DataCopy) -> set[Key]:
        used = [entry["category_id"] for entry in data.entries("annotations")]
        old = max(data.entries("categories"), key=lambda entry: used.count(entry["id"]))
        new_id = _free_id(data.entries("categories"))
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


def plant_numbers(new_id: Callable[[int], int]) -> Planter:
    """Give the categories other ids, by their place in the list."""

    def plant(data: DataCopy) -> set[Key]:
        for content in data.contents.values():
            order = {entry["id"]: new_id(number) for number, entry in enumerate(content["categories"])}
            for entry in content["categories"]:
                entry["id"] = order[entry["id"]]
            for entry in content["annotations"]:
                entry["category_id"] = order[entry["category_id"]]
        return {("count", 1)}

    return plant


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
            name = f"planted-{row}.jpg"
            path, target = data.root / other / entry["file_name"], data.root / data.first / name
            new, scale = {**entry, "id": _free_id(entries), "file_name": name}, 1.0
            if change is None:
                os.link(path, target)
            else:
                with Image.open(path) as image:
                    changed = change(image.convert("RGB"))
                changed.save(target, quality=70)
                scale = changed.width / image.width
                new.update(width=changed.width, height=changed.height)
            keys.add(("image", data.first, len(entries)))
            entries.append(new)
            for annotation in source["annotations"]:
                if annotation["image_id"] == entry["id"]:
                    box = [value * scale for value in annotation["bbox"]]
                    moved = {"image_id": new["id"], "bbox": box, "area": annotation["area"] * scale * scale}
                    kept = {key: annotation[key] for key in ("category_id", "iscrowd")}
                    annotations.append({"id": _free_id(annotations), **kept, **moved})
        return keys

    return plant


def plant_only_one_split(data: DataCopy) -> set[Key]:
    new_id = _free_id(data.entries("categories"))
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
    top = _free_id(entries)
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


def _large_area(_data: DataCopy, entry: dict[str, Any]) -> None:
    entry["area"] = 10 * entry["bbox"][2] * entry["bbox"][3]


def _over(box: list[float], size: tuple[int, int]) -> list[float]:
    return [size[0] - box[2] / 2 - 4, box[1], box[2] + 8, box[3]]


_HALF = plant_leak(lambda image: image.resize((image.width // 2, image.height // 2)))
_BRIGHTER = plant_leak(lambda image: ImageEnhance.Brightness(image).enhance(1.2))
_ON_ITS_SIDE = image_planter(_turn, lambda entry: entry["width"] != entry["height"])


def _box_planter(change: Callable[[list[float], tuple[int, int]], list[float]], **options: Any) -> Planter:
    return annotation_planter(_set_box(change), **options)


def _mask_planter(spoil: Spoil) -> Planter:
    return annotation_planter(spoil, keep_mask=True)


_TABLE: Sequence[tuple[str, str, Planter, *tuple[str, ...]]] = (
    ("annotations_unreadable", "JSON cut off", plant_cut_json),
    ("image_empty", "0 bytes", image_planter(lambda data, row: data.file(row).write_bytes(b""))),
    ("image_truncated", "cut at 60 %", image_planter(_truncate)),
    ("image_unreadable", "a web page", image_planter(_not_an_image)),
    ("image_mislabelled", "PNG under another name", image_planter(_mislabel)),
    ("missing_image", "file deleted", image_planter(lambda data, row: data.file(row).unlink())),
    ("file_name_case", "upper case", image_planter(_rename(str.swapcase))),
    ("absolute_file_name", "/data/...", image_planter(_rename(lambda name: "/data/set/" + name))),
    ("escaping_file_name", "../...", image_planter(_rename(lambda name: "../../" + name))),
    ("size_mismatch", "other size in the JSON", image_planter(_resize_listed)),
    ("exif_rotated_size", "stored on its side", _ON_ITS_SIDE),
    ("missing_size", "no width", image_planter(lambda data, row: data.entries()[row].pop("width"))),
    ("duplicate_image_ids", "id of the first image", same_id_planter("image"), "unknown_image_id"),
    ("duplicate_annotation_ids", "id of the first annotation", same_id_planter("annotation")),
    ("duplicate_category_ids", "a second class under an id", plant_category_ids),
    ("image_listed_twice", "entry repeated", repeat_planter("image", lambda _data, _entry: True)),
    ("unknown_image_id", "image 987654321", annotation_planter(_set(image_id=987654321))),
    ("unknown_category_id", "category 987654", annotation_planter(_set(category_id=987654))),
    ("category_ids_with_gaps", "every third number", plant_numbers(lambda number: 3 * number + 1)),
    ("category_ids_from_0", "from 0", plant_numbers(lambda number: number)),
    ("category_ids_from_1", "from 1", plant_numbers(lambda number: number + 1)),
    ("duplicate_class_names", "same name", plant_class_name(str)),
    ("class_names_differ_by_case", "upper case", plant_class_name(str.upper)),
    ("class_names_differ_by_case", "space at the end", plant_class_name("{} ".format), "class_name_spaces"),
    ("class_ids_differ", "two names exchanged", plant_swapped_names),
    ("class_lists_differ", "a class not listed", plant_shorter_list),
    ("class_in_one_split", "a new class in one split", plant_only_one_split),
    ("rare_class", "a class with few objects", plant_only_one_split),
    ("box_empty", "width 0", _box_planter(lambda box, _: [*box[:2], 0, box[3]])),
    ("box_negative", "negative size", _box_planter(lambda b, _: [b[0] + b[2], b[1] + b[3], -b[2], -b[3]])),
    ("box_outside", "right of the image", _box_planter(lambda box, size: [size[0] + 5, *box[1:]])),
    ("box_leaves_image", "over the right edge", _box_planter(_over)),
    (
        "box_larger_than_image",
        "wider than the image",
        _box_planter(lambda b, size: [2, b[1], size[0] * 1.5, b[3]]),
    ),
    ("box_missing", "null", annotation_planter(_set(bbox=None))),
    ("box_not_finite", "text", annotation_planter(lambda _, entry: entry["bbox"].__setitem__(2, "wide"))),
    ("box_xyxy", "all boxes as corners", all_boxes_planter(_set_box(_corners))),
    ("box_xyxy", "some, masks at hand", _box_planter(_corners, accept=_with_mask, keep_mask=True)),
    ("box_xyxy", "some, far out of the image", _box_planter(_corners, accept=_shows_corners)),
    ("box_cxcywh", "some, masks at hand", _box_planter(_centre, accept=_with_mask, keep_mask=True)),
    ("box_cxcywh", "all boxes by their centre", all_boxes_planter(_set_box(_centre))),
    ("box_normalised", "all boxes normalised", all_boxes_planter(_set_box(_normalised))),
    ("box_normalised", "some boxes normalised", _box_planter(_normalised)),
    ("duplicate_boxes", "annotation repeated", repeat_planter("annotation", DataCopy.ordinary)),
    (
        "boxes_with_two_classes",
        "box under another class",
        repeat_planter("annotation", DataCopy.ordinary, _other_class),
    ),
    ("area_wrong", "area ten times the box", annotation_planter(_large_area)),
    ("mask_box_mismatch", "mask elsewhere", _mask_planter(_shift_mask)),
    ("mask_polygon_short", "two points", _mask_planter(_short_polygon)),
    ("mask_outside_image", "mask over the edge", _mask_planter(_mask_outside)),
    (
        "mask_unreadable",
        "RLE of another size",
        _mask_planter(_set(segmentation={"size": [7, 9], "counts": [10, 5, 48]})),
    ),
    ("image_in_two_splits", "same bytes", plant_leak(None)),
    ("near_duplicate_in_two_splits", "compressed again", plant_leak(lambda image: image)),
    ("near_duplicate_in_two_splits", "half the size", _HALF),
    ("near_duplicate_in_two_splits", "brighter", _BRIGHTER),
    ("more_objects_than_queries", "120 objects", plant_many_objects),
)

PLANTERS: dict[str, Sequence[tuple[str, Planter, frozenset[str]]]] = {}
"""For each kind of finding: what is done, how, and other kinds that rightly come with it."""

for _kind, _words, _planter, *_others in _TABLE:
    PLANTERS[_kind] = (*PLANTERS.get(_kind, ()), (_words, _planter, frozenset(_others)))
