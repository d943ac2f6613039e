"""Writing a data set in the layout of COCO.

``train/``, ``val/`` and so on hold the images, ``annotations/instances_train.json`` and so on what is on them.
hotcoco's ``COCO.save`` writes one JSON file from its own entries; here the repaired index is what counts.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.data.formats.coco.read import load_coco_table, load_json
from detrkit.data.formats.output import DEFAULTS, Splits, WriteOptions, inside_name, new_data_set, place_image
from detrkit.data.index import CocoIndex, check_inside
from detrkit.errors import AnnotationError, DataError, counted
from detrkit.files import atomic_file

_DIGITS = 6
"""Decimals of boxes: takes the noise of adding and subtracting out, and gives COCO its own numbers back."""
_SAME_PIXELS = 1e-3
"""Boxes that repair moved by less keep the numbers of their source."""
_ENTRIES = ("images", "annotations", "categories")


def write_coco(out: Path, splits: Splits, options: WriteOptions = DEFAULTS) -> list[str]:
    """Write a data set in COCO layout into a new or empty folder, which is whole or not there.

    Returns:
        Images that have none of the panoptic annotations which are kept beside, in words.

    Raises:
        UsageError: ``out`` is not empty, or a split has an impossible name.
        DataError: A file name leads out of the image folder.
    """
    notes: list[str] = []
    with new_data_set(out, splits, options) as (folder, place):
        for split, (index, images) in splits.items():
            (folder / split).mkdir()
            names = place(index, images, folder / split)
            source = options.sources.get(split)
            content = coco_content(index, names) if source is None else merged_content(index, names, source)
            write_coco_json(folder / "annotations" / f"instances_{split}.json", content)
            if split in options.panoptic:
                notes += write_panoptic_part(folder, split, index, names, options)
    return notes


def write_coco_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a COCO JSON file with one entry a line, whole or not at all, into a folder that detrkit made."""
    with atomic_file(path, own_folder=True) as file:
        for number, (key, value) in enumerate(content.items()):
            file.write(f"{',' if number else '{'}\n{json.dumps(key)}: ")
            if isinstance(value, list):
                file.write("[")
                for place, entry in enumerate(value):
                    file.write(("," if place else "") + "\n" + json.dumps(entry))
                file.write("\n]")
            else:
                file.write(json.dumps(value))
        file.write("\n}\n")


def coco_content(index: CocoIndex, names: Iterable[str]) -> dict[str, Any]:
    """Return images, annotations, with masks if any, and categories as COCO has them, under given names.

    Ids of images and categories that are texts stay texts.
    """
    image_ids, sizes_hw = list(map(index.written_id, range(len(index)))), list(map(tuple, index.sizes_hw.tolist()))
    images = [
        {"id": image_id, "file_name": name, "height": height, "width": width}
        for image_id, name, (height, width) in zip(image_ids, names, sizes_hw, strict=True)
    ]
    category_ids = [index.category_id_texts.get(number, number) for number in index.class_map.category_ids]
    columns: dict[str, list[Any]] = {
        "id": unique_ids(index.annotation_ids).tolist(),
        "image_id": [image_ids[row] for row in np.repeat(np.arange(len(index)), np.diff(index.offsets)).tolist()],
        "category_id": [category_ids[label] for label in index.labels.tolist()],
        "bbox": boxes_xywh(index).tolist(),
        "area": index.area.tolist(),
        "iscrowd": index.iscrowd.astype(np.int64).tolist(),
    }
    if index.masks is not None:
        sizes = enumerate(index.sizes_hw.tolist())
        parts = (
            index.masks.as_coco(index.annotation_rows(row), (height, width)) for row, (height, width) in sizes
        )
        columns["segmentation"] = list(chain.from_iterable(parts))
    annotations = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(category_ids, index.class_map.names, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def merged_content(index: CocoIndex, names: Iterable[str], source: Path) -> dict[str, Any]:
    """Return :func:`coco_content` with all that the entries of ``source`` hold besides.

    What repair changed, such as a clipped box or a converted number, is written as repaired.
    """
    original, table = load_json(source), load_coco_table(source)
    content = coco_content(index, names)
    images = dict(zip(table.image_ids.tolist(), original["images"], strict=True))
    categories = dict(zip(table.category_ids, original["categories"], strict=True))
    annotations: defaultdict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    keys = zip(table.image_refs.tolist(), table.annotation_ids.tolist(), strict=True)
    for key, entry in zip(keys, original["annotations"], strict=True):
        annotations[key].append(entry)
    merged: dict[str, Any] = {key: value for key, value in original.items() if key not in _ENTRIES}
    merged["images"] = [
        {**images.get(number, {}), **entry}
        for number, entry in zip(index.image_ids.tolist(), content["images"], strict=True)
    ]
    image_ids = np.repeat(index.image_ids, np.diff(index.offsets)).tolist()
    merged["annotations"] = []
    for image_id, number, entry in zip(
        image_ids, index.annotation_ids.tolist(), content["annotations"], strict=True
    ):
        found = _take_nearest(entry["bbox"], annotations[(image_id, number)])
        entry["id"] = table.annotation_id_texts.get(entry["id"], entry["id"])
        merged["annotations"].append(merge_annotation(entry, found))
    merged["categories"] = [
        {**categories.get(number, {}), **entry}
        for number, entry in zip(index.class_map.category_ids, content["categories"], strict=True)
    ]
    return merged


def write_panoptic_part(
    folder: Path, split: str, index: CocoIndex, names: Sequence[str], options: WriteOptions
) -> list[str]:
    """Write the panoptic entries and PNG files of some images as they are.

    Args:
        folder: Folder of the data set.
        split: Name of the part.
        index: Images that it has.
        names: Their names in the data set.
        options: Of which ``panoptic`` names the JSON file and the folder of PNG files.

    Raises:
        AnnotationError: An entry is not usable, or its PNG file lies outside the folder.
        DataError: A PNG file is not there.
    """
    source, pictures = options.panoptic[split]
    content = load_json(source)
    try:
        images = {str(entry["id"]): entry for entry in content["images"]}  # "17" may have been read as 17
        entries = {str(entry["image_id"]): entry for entry in content["annotations"]}
        ids = [str(index.written_id(row)) for row in range(len(index))]
        kept = [image_id for image_id in ids if image_id in entries]
        target = folder / "annotations" / f"panoptic_{split}"
        target.mkdir(parents=True)
        for image_id in kept:
            name = str(entries[image_id]["file_name"])
            check_inside(name, pictures)
            place_image(pictures / name, target / inside_name(name), copy=options.copy)
    except FileNotFoundError as error:
        raise DataError(f"{source}: there is no {error.filename}; run: detrkit data check") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise AnnotationError(f"{source}: an entry has no usable {error}; run: detrkit data check") from error
    listed = [{**images[one], "file_name": name} for one, name in zip(ids, names, strict=True) if one in images]
    part = {**content, "images": listed, "annotations": [entries[image_id] for image_id in kept]}
    write_coco_json(folder / "annotations" / f"panoptic_{split}.json", part)
    missing = len(ids) - len(kept)
    return [f"{split}: {counted(missing, 'image')} without panoptic annotation"] if missing else []


def boxes_xywh(index: CocoIndex) -> np.ndarray:
    """Return boxes as COCO writes them, float64 ``[N, 4]``, without the noise of arithmetic."""
    corners = index.boxes_xyxy
    xywh: np.ndarray = np.round(np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1), _DIGITS)
    return xywh


def unique_ids(ids: np.ndarray) -> np.ndarray:
    """Return the ids, where they repeat with new ones above the greatest; int64."""
    unique = ids.copy()
    is_repeat = np.ones(len(ids), dtype=bool)
    is_repeat[np.unique(ids, return_index=True)[1]] = False
    first_free = int(ids.max(initial=0)) + 1
    unique[is_repeat] = np.arange(first_free, first_free + int(is_repeat.sum()))
    return unique


def merge_annotation(entry: dict[str, Any], original: Mapping[str, Any]) -> dict[str, Any]:
    """Add to an annotation the further fields of the entry that it was read from.

    A mask of another place, and an angle that the box has already, are left out.
    """
    merged = {**original, **entry}
    distance, attributes = _distance(entry["bbox"], original), merged.get("attributes")
    if distance < _SAME_PIXELS:
        merged["bbox"] = original["bbox"]
        return merged
    if isinstance(attributes, dict) and attributes.get("rotation"):
        merged["attributes"] = {key: value for key, value in attributes.items() if key != "rotation"}
    if distance < float("inf") and merged.get("segmentation") and _is_turned(entry["bbox"], original["bbox"]):
        merged["segmentation"] = []
    return merged


def _is_turned(box: list[float], original: list[float]) -> bool:
    """Return whether a box leaves the one that it was made of: by clipping it only shrinks, by EXIF it moves."""
    before, after = np.array(original, dtype=np.float64), np.array(box)
    beyond = np.maximum(before[:2] - after[:2], (after[:2] + after[2:]) - (before[:2] + before[2:]))
    return bool(beyond.max() > _SAME_PIXELS)


def _take_nearest(box: list[float], candidates: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Take the next of the entries with the id of an annotation; empty where there is none left."""
    if not candidates:
        return {}
    nearest = min(range(len(candidates)), key=lambda place: _distance(box, candidates[place]))
    return candidates.pop(nearest)


def _distance(box: list[float], entry: Mapping[str, Any]) -> float:
    """Return the greatest difference from the box of an entry; infinite where that is not four numbers."""
    values = entry.get("bbox")
    if (
        not isinstance(values, list)
        or len(values) != 4
        or not all(isinstance(one, (int, float)) for one in values)
    ):
        return float("inf")
    return max(abs(one - float(two)) for one, two in zip(box, values, strict=True))
