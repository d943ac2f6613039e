"""Writing a data set as YOLO: ``images/<split>/``, ``labels/<split>/`` and ``data.yaml``.

Why not the writers of others: hotcoco 1.3 writes the labels of one split into one flat folder and does not take
COCO files whose year is text, as Roboflow's is. supervision 0.31 writes masks as polygons, one for every part
(another number of objects in 64 of 180 COCO images, boxes up to 1.4 pixels off), and decodes every image.
"""

from __future__ import annotations

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

DIGITS = 9
"""Decimals of a share: boxes on an image of 30,000 pixels come back to a ten-thousandth of a pixel."""


def write_yolo(out: Path, splits: Splits, options: WriteOptions = DEFAULTS) -> list[str]:
    """Write a data set as YOLO into a new or empty folder, which is whole or not there.

    Crowd regions are left out, since a YOLO label is always one object. ``data.yaml`` has no ``path``: Ultralytics
    would take a relative one from the working directory, and without it from the file.

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
            for row, name in enumerate(place(index, images, folder / where, rename=renames.__getitem__)):
                path = folder / label_name(f"{where}/{name}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(_lines(index, row, numbers[split]), encoding="utf-8")
            notes += renamed_note(split, renames, "labels have the name of their image")
            if index.iscrowd.any():
                notes.append(f"{split}: {int(index.iscrowd.sum())} crowd regions left out: YOLO has none")
        content = {split: f"images/{split}" for split in splits}
        text = yaml.safe_dump(
            {**content, "nc": len(names), "names": dict(enumerate(names))}, sort_keys=False, allow_unicode=True
        )
        (folder / "data.yaml").write_text(text, encoding="utf-8")
    return notes


def _lines(index: CocoIndex, row: int, numbers: np.ndarray) -> str:
    """Return the objects of an image, one a line: class, centre, width and height as shares of the image."""
    rows = index.annotation_rows(row)
    kept = ~index.iscrowd[rows]
    corners, labels = index.boxes_xyxy[rows][kept], numbers[index.labels[rows][kept]]
    height, width = index.sizes_hw[row].tolist()
    shares = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    shares /= (width, height, width, height)
    shares[:, 2:] = np.maximum(shares[:, 2:], 10**-DIGITS)  # rounded to 0, it would be no object
    return "".join(
        f"{label} {x:.{DIGITS}f} {y:.{DIGITS}f} {w:.{DIGITS}f} {h:.{DIGITS}f}\n"
        for label, (x, y, w, h) in zip(labels.tolist(), shares.tolist(), strict=True)
    )
