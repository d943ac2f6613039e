"""Writing a data set as YOLO: ``images/<split>/``, ``labels/<split>/`` and ``data.yaml``.

Why not the writers of others: hotcoco 1.3 writes the labels of one split into one flat folder and does not take
COCO files whose year is text, as Roboflow's is. supervision 0.31 writes masks as polygons, one for every part
(another number of objects in 64 of 180 COCO images, boxes up to 1.4 pixels off), and decodes every image.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from detrkit.data.formats.output import (
    DEFAULTS,
    Splits,
    WriteOptions,
    common_classes,
    distinct_names,
    new_data_set,
    renamed_note,
)
from detrkit.data.formats.yolo.read import label_name
from detrkit.data.index import CocoIndex
from detrkit.data.outlines import join_polygons, mask_outlines
from detrkit.data.segmentation import mask_rle

DIGITS = 9
"""Decimals of a share: boxes on an image of 30,000 pixels come back to a ten-thousandth of a pixel."""


def write_yolo(out: Path, splits: Splits, options: WriteOptions = DEFAULTS) -> list[str]:
    """Write a data set as YOLO into a new or empty folder, which is whole or not there.

    Of objects with masks polygons are written, if asked for. Crowd regions are left out, since a YOLO label is
    always one object. ``data.yaml`` has no ``path``: Ultralytics would take a relative one from the working
    directory, and without it from the file.

    Returns:
        What the format could not hold, and what was done about it, in words.

    Raises:
        UsageError: ``out`` is not empty, or a split has an impossible name.
        DataError: A file name leads out of the image folder.
    """
    splits = {split: (index.merge_repeated(), images) for split, (index, images) in splits.items()}
    names, numbers = common_classes(splits)
    notes: list[str] = []
    with new_data_set(out, splits, options) as (folder, place):
        for split, (index, images) in splits.items():
            renames = distinct_names(index, images)
            where = f"images/{split}"
            (folder / where).mkdir(parents=True)
            as_boxes = 0
            for row, name in enumerate(place(index, images, folder / where, rename=renames.__getitem__)):
                path = folder / label_name(f"{where}/{name}")
                path.parent.mkdir(parents=True, exist_ok=True)
                polygons = _polygons(index, row) if options.polygons else {}
                as_boxes += int((~index.iscrowd[index.annotation_rows(row)]).sum()) - len(polygons)
                path.write_text(_lines(index, row, numbers[split], polygons), encoding="utf-8")
            if options.polygons and as_boxes:
                notes.append(f"{split}: {as_boxes:,} objects without a mask are written as boxes among polygons")
            notes += renamed_note(split, renames, "labels have the name of their image")
            if index.iscrowd.any():
                notes.append(f"{split}: {int(index.iscrowd.sum())} crowd regions left out: YOLO has none")
        content = {split: f"images/{split}" for split in splits}
        text = yaml.safe_dump(
            {**content, "nc": len(names), "names": dict(enumerate(names))}, sort_keys=False, allow_unicode=True
        )
        (folder / "data.yaml").write_text(text, encoding="utf-8")
    return notes


def _lines(index: CocoIndex, row: int, numbers: np.ndarray, polygons: Mapping[int, np.ndarray]) -> str:
    """Return the objects of an image, one a line: class, and a polygon or centre, width and height, as shares."""
    span = index.annotation_rows(row)
    rows = np.arange(span.start, span.stop)[~index.iscrowd[span]]
    corners, labels = index.boxes_xyxy[rows], numbers[index.labels[rows]]
    height, width = index.sizes_hw[row].tolist()
    shares = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    shares /= (width, height, width, height)
    shares[:, 2:] = np.maximum(shares[:, 2:], 10**-DIGITS)  # rounded to 0, it would be no object
    drawn = {one: np.clip(polygon / (width, height), 0, 1).ravel() for one, polygon in polygons.items()}
    return "".join(
        f"{label} {' '.join(f'{value:.{DIGITS}f}' for value in drawn.get(one, box).tolist())}\n"
        for label, one, box in zip(labels.tolist(), rows.tolist(), shares, strict=True)
    )


def _polygons(index: CocoIndex, row: int) -> dict[int, np.ndarray]:
    """Return the polygon in pixels, ``[points, 2]``, of each object of an image with a mask, by annotation row.

    Several parts, and holes, are joined to one; runs (RLE) and segments are outlined.
    """
    from hotcoco import mask as mask_functions

    if index.masks is None:
        return {}
    span, size_hw = index.annotation_rows(row), tuple(index.sizes_hw[row].tolist())
    rows = [one for one in range(span.start, span.stop) if index.masks.is_given[one] and not index.iscrowd[one]]
    found = {}
    for one, mask in zip(rows, index.masks.as_coco(np.array(rows, dtype=np.int64), size_hw), strict=True):
        if isinstance(mask, dict):
            parts = mask_outlines(mask_functions.decode(mask_rle(mask, size_hw)) > 0)
        else:
            parts = [np.array(part, dtype=np.float64).reshape(-1, 2) for part in mask if len(part) >= 6]
        found[one] = join_polygons(parts)
    return found
