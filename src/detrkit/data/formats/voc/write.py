"""Writing a data set as Pascal VOC: ``JPEGImages/``, ``Annotations/``, ``ImageSets/Main/`` and ``labels.txt``.

Why not the writers of others: hotcoco 1.3 adds 1 to ``xmin`` and ``ymin``, writes no splits, and does not take
COCO files whose year is text, as Roboflow's is. supervision 0.31 adds 1 as well, writes an object for every part
of a mask (another number of objects in 64 of 180 COCO images, boxes up to 1.5 pixels off), and takes 17 s for
them, since it decodes images; this takes 0.3 s.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from detrkit.data.formats.output import (
    DEFAULTS,
    Splits,
    WriteOptions,
    common_classes,
    distinct_names,
    inside_name,
    new_data_set,
    renamed_note,
)
from detrkit.data.formats.voc.read import LABELS_FILE
from detrkit.data.index import CocoIndex
from detrkit.errors import listed

DIGITS = 3
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_voc(out: Path, splits: Splits, options: WriteOptions = DEFAULTS) -> list[str]:
    """Write a data set as Pascal VOC into a new or empty folder, which is whole or not there.

    Corners are in pixels from 0, as they are read; whole ones unless ``options.decimals``, since some readers know
    no others. ``labels.txt`` keeps the classes in order, of which XML files would only tell those that occur.

    Returns:
        What the format could not hold, and what was done about it, in words.

    Raises:
        UsageError: ``out`` is not empty, or a split has an impossible name.
        DataError: A file name leads out of the image folder.
    """
    splits = {split: (index.merge_repeated(), images) for split, (index, images) in splits.items()}
    names, numbers = common_classes(splits)
    texts = [_class_text(name, number) for number, name in enumerate(names)]
    renames, notes = _new_names(splits)
    alike = Counter(texts)
    if alike.total() > len(alike):
        merged = listed([name for name, count in alike.items() if count > 1])
        notes.append(f"classes that differ by blanks only are one class when it is read: {merged}")
    with new_data_set(out, splits, options) as (folder, place):
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        for split, (index, images) in splits.items():
            placed = place(index, images, folder / "JPEGImages", rename=renames[split].__getitem__)
            boxes = index.boxes_xyxy if options.decimals else whole_pixels(index)
            for row, name in enumerate(placed):
                path = folder / "Annotations" / f"{_stem(name)}.xml"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(_xml(index, row, name, boxes, numbers[split], texts), encoding="utf-8")
            lines = "".join(f"{_stem(name)}\n" for name in dict.fromkeys(placed))
            _write_list(folder / "ImageSets" / "Main" / f"{split}.txt", lines)
            if index.iscrowd.any():
                notes.append(f"{split}: {int(index.iscrowd.sum())} crowd regions written as difficult objects")
            thin = 0 if options.decimals else int(_vanishes(index).any(axis=1).sum())
            if thin:
                notes.append(f"{split}: {thin} boxes too thin for whole pixels are written with decimals")
        _write_list(folder / LABELS_FILE, "".join(f"{text}\n" for text in texts))
    return notes


def whole_pixels(index: CocoIndex) -> np.ndarray:
    """Round boxes to whole pixels, except where that leaves nothing; ``[N, 4]``."""
    vanishes = np.tile(_vanishes(index), 2)
    rounded: np.ndarray = np.where(vanishes, index.boxes_xyxy, np.rint(index.boxes_xyxy))
    return rounded


def _vanishes(index: CocoIndex) -> np.ndarray:
    """Return whether rounding leaves nothing of the width or the height of a box, bool ``[N, 2]``."""
    corners = np.rint(index.boxes_xyxy)
    vanishes: np.ndarray = corners[:, 2:] <= corners[:, :2]
    return vanishes


def _new_names(splits: Splits) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Choose the name of every image in ``JPEGImages``, which all splits share; say which changed."""
    listed = {
        split: dict.fromkeys(map(index.file_name, range(len(index)))) for split, (index, _) in splits.items()
    }
    stems = Counter(stem for names in listed.values() for stem in {_stem(inside_name(name)) for name in names})
    is_shared = any(count > 1 for count in stems.values())
    renames: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    for split, (index, images) in splits.items():
        chosen = distinct_names(index, images)
        notes += renamed_note(split, chosen, "XML files have the name of their image")
        renames[split] = {old: f"{split}/{new}" for old, new in chosen.items()} if is_shared else chosen
    if is_shared:
        notes.append("images of different splits have the same names, so each split has a folder in JPEGImages")
    return renames, notes


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and "/" not in suffix else name


def _xml(index: CocoIndex, row: int, name: str, boxes: np.ndarray, numbers: np.ndarray, texts: list[str]) -> str:
    height, width = index.sizes_hw[row].tolist()
    rows = index.annotation_rows(row)
    objects = zip(
        numbers[index.labels[rows]].tolist(), boxes[rows].tolist(), index.iscrowd[rows].tolist(), strict=True
    )
    parts = [
        "<annotation>\n\t<folder>JPEGImages</folder>\n"
        f"\t<filename>{_escaped(name.rpartition('/')[2])}</filename>\n"
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n\t</size>\n"
        "\t<segmented>0</segmented>\n"
    ]
    for label, corners, is_crowd in objects:
        box = "".join(
            f"\t\t\t<{tag}>{_pixels(value)}</{tag}>\n"
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        )
        parts.append(
            f"\t<object>\n\t\t<name>{_escaped(texts[label])}</name>\n\t\t<pose>Unspecified</pose>\n"
            f"\t\t<truncated>0</truncated>\n\t\t<difficult>{int(is_crowd)}</difficult>\n"
            f"\t\t<bndbox>\n{box}\t\t</bndbox>\n\t</object>\n"
        )
    return "".join(parts) + "</annotation>\n"


def _pixels(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.{DIGITS}f}".rstrip("0").rstrip(".")


def _class_text(name: str, number: int) -> str:
    """Return a class name on one line of text that XML can hold, blanks as they are read."""
    return _NO_XML.sub("\ufffd", " ".join(name.split())) or f"class_{number}"


def _escaped(text: str) -> str:
    return escape(_NO_XML.sub("\ufffd", text))


def _write_list(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
