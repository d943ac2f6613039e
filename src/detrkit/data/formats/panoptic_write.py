"""Writing COCO panoptic: PNG files whose colours are segment ids, and a JSON file that says what the segments are.

``train/`` holds the images, ``annotations/panoptic_train.json`` and the folder of this name the segments. What was
read from COCO panoptic keeps its PNG files and entries as they are; masks of objects are painted over each other.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from detrkit.classes import ClassMap
from detrkit.data.formats.coco.write import coco_content, write_coco_json, write_panoptic_part
from detrkit.data.formats.output import DEFAULTS, Splits, WriteOptions, distinct_names, new_data_set
from detrkit.data.index import CocoIndex
from detrkit.errors import DataError
from detrkit.masks import PanopticSegments, segments_info


def panoptic_categories(class_map: ClassMap) -> list[dict[str, Any]]:
    """Return the categories of a panoptic file, things and stuff."""
    return [
        {"id": category_id, "name": name, "isthing": int(class_id not in class_map.stuff)}
        for class_id, (category_id, name) in enumerate(zip(class_map.category_ids, class_map.names, strict=True))
    ]


def paint_objects(
    masks: np.ndarray, labels: np.ndarray, iscrowd: np.ndarray, class_map: ClassMap
) -> tuple[PanopticSegments, np.ndarray]:
    """Paint the masks of an image over each other, so that each pixel belongs to one segment.

    Stuff lies below, all of a class as one segment, then crowd regions, then objects, the larger below the
    smaller: what lies before another or on it is mostly the smaller. Of two alike the later lies on top.

    Args:
        masks: bool ``[N, H, W]``.
        labels: Class ids, ``[N]``.
        iscrowd: bool ``[N]``.
        class_map: Classes, which says what is stuff.

    Returns:
        The picture, and the row of each of its segments, the first where several make one.
    """
    owner = np.full(masks.shape[1:], -1, dtype=np.int64)
    is_stuff = np.isin(labels, class_map.stuff)
    first = {label: row for row, label in reversed(list(enumerate(labels.tolist()))) if is_stuff[row]}
    level = np.where(is_stuff, 0, np.where(iscrowd, 1, 2))
    for row in np.lexsort((-masks.sum(axis=(1, 2)), level)).tolist():
        owner[masks[row]] = first.get(labels[row], row)
    rows, ids, areas = np.unique(owner, return_inverse=True, return_counts=True)
    ids = ids.reshape(owner.shape)
    if len(rows) and rows[0] < 0:  # pixels of nothing
        rows, areas = rows[1:], areas[1:]
    else:
        ids = ids + 1
    return PanopticSegments(ids.astype(np.int32), labels[rows], np.ones(len(rows)), areas.astype(np.int64)), rows


def write_panoptic(out: Path, splits: Splits, options: WriteOptions = DEFAULTS) -> list[str]:
    """Write a data set as COCO panoptic into a new or empty folder, which is whole or not there.

    Returns:
        What the format could not hold, and what was done about it, in words.

    Raises:
        UsageError: ``out`` is not empty, or a split has an impossible name.
        DataError: A file name leads out of the image folder, or a split has no masks.
    """
    splits = {split: (index.merge_repeated(), images) for split, (index, images) in splits.items()}
    notes: list[str] = []
    with new_data_set(out, splits, options) as (folder, place):
        for split, (index, images) in splits.items():
            (folder / split).mkdir()
            names = place(index, images, folder / split)
            if split in options.panoptic:
                notes += write_panoptic_part(folder, split, index, names, options)
            else:
                notes += _write_painted(folder, split, index, images, names, options)
    return notes


def _write_painted(
    folder: Path, split: str, index: CocoIndex, images: Path, names: Sequence[str], options: WriteOptions
) -> list[str]:
    """Write the masks of the objects of a split, painted over each other; say what of them is not seen."""
    if index.masks is None:
        raise DataError(f"{split}: no object has a mask, so there are no segments; expected polygons or RLE")
    pictures = folder / "annotations" / f"panoptic_{split}"
    pictures.mkdir(parents=True)
    stems = distinct_names(index, images)
    content = coco_content(dataclasses.replace(index, masks=None), names)
    categories = [
        {**kind, "id": own["id"]}
        for kind, own in zip(panoptic_categories(index.class_map), content["categories"], strict=True)
    ]
    own_ids = [kind["id"] for kind in categories]
    left_out = options.left_out[split] = Counter()
    shared = empty = total = 0
    entries = []
    for row, image in enumerate(content["images"]):
        listed = np.arange(len(index.labels))[index.annotation_rows(row)]
        rows = listed[index.masks.is_given[listed]]
        masks = index.masks.decode(rows, (image["height"], image["width"]))
        segments, kept = paint_objects(masks, index.labels[rows], index.iscrowd[rows], index.class_map)
        # the picture and its entry
        name = f"{PurePosixPath(stems[index.file_name(row)]).with_suffix('')}.png"
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(segments.colors()).save(pictures / name)
        infos = segments_info(segments, own_ids, index.iscrowd[rows][kept].tolist())
        entries.append({"image_id": image["id"], "file_name": name, "segments_info": infos})
        # what is not seen
        seen = np.isin(index.labels[rows], index.class_map.stuff)
        seen[kept] = True
        for kind, gone in (("mask_missing", np.setdiff1d(listed, rows)), ("mask_covered", rows[~seen])):
            left_out.update((kind, index.class_map.names[label]) for label in index.labels[gone].tolist())
        shared += int((masks.sum(axis=0, dtype=np.int32) > 1).sum())
        empty += int((segments.ids == 0).sum())
        total += segments.ids.size
    written = {"images": content["images"], "annotations": entries, "categories": categories}
    write_coco_json(folder / "annotations" / f"panoptic_{split}.json", written)
    notes = [f"{split}: {100 * empty / max(total, 1):.1f} % of the pixels belong to no segment"]
    if shared:
        share = 100 * shared / max(total, 1)
        notes.append(
            f"{split}: {shared:,} pixels ({share:.2f} %) lie in several masks; the smaller object has them"
        )
    return notes
