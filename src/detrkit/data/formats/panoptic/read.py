"""Reading COCO panoptic: a JSON file with the segments of each image, and a PNG file with their pixels.

Things, of which there can be several, become boxes; segments of stuff have no place in a table of objects; they
are in :class:`PanopticSplit`.

Shapes: I images, S segments of all of them, C categories.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrkit.data.faults import Findings
from detrkit.data.formats.base import SplitFiles, usable_size
from detrkit.data.formats.coco.read import load_json
from detrkit.data.table import AnnotationTable
from detrkit.errors import AnnotationError, DataError, ImageError


@dataclasses.dataclass(frozen=True)
class PanopticSplit:
    """Every segment of a split as it is written, things and stuff.

    Args:
        source: The JSON file.
        segments: Folder of the PNG files.
        image_ids: int64 ``[I]``.
        file_names: ``[I]``, relative to the image folder.
        sizes_hw: Pixels as written, int32 ``[I, 2]``; 0 where nothing usable is written.
        png_names: ``[I]``, relative to ``segments``; empty for images without an annotation.
        category_ids: ``[C]``.
        category_names: ``[C]``.
        is_thing: bool ``[C]``.
        image_rows: Image of each segment, int64 ``[S]``.
        segment_ids: Value of its pixels, R + 256 G + 65536 B, int64 ``[S]``.
        category_refs: int64 ``[S]``.
        boxes_xywh: Pixels, float64 ``[S, 4]``; NaN where none is written.
        area: Pixels, float64 ``[S]``; NaN where none is written.
        iscrowd: bool ``[S]``.
    """

    source: Path
    segments: Path
    image_ids: np.ndarray
    file_names: list[str]
    sizes_hw: np.ndarray
    png_names: list[str]
    category_ids: list[int]
    category_names: list[str]
    is_thing: np.ndarray
    image_rows: np.ndarray
    segment_ids: np.ndarray
    category_refs: np.ndarray
    boxes_xywh: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray


def read_panoptic(files: SplitFiles) -> PanopticSplit:
    """Read every segment of a split.

    Raises:
        AnnotationError: The file is not COCO panoptic JSON.
        DataError: It lists no images or no categories.
    """
    source = files.annotations
    content = load_json(source)
    images, categories = _entries(content, "images", source), _entries(content, "categories", source)
    annotations = _entries(content, "annotations", source)
    if not images or not categories:
        raise DataError(f"{source}: lists no {'categories' if images else 'images'}; use a panoptic file of COCO")
    try:
        image_ids = np.array([int(entry["id"]) for entry in images], dtype=np.int64)
        row_of = {image_id: row for row, image_id in reversed(list(enumerate(image_ids.tolist())))}
        by_row = [(row_of.get(int(entry["image_id"]), -1), entry) for entry in annotations]
        unknown = sum(row < 0 for row, _ in by_row)
        if unknown:
            raise AnnotationError(f"{source}: {unknown} annotations belong to an image that is not listed")
        png_names = [""] * len(images)
        for row, entry in by_row:
            png_names[row] = str(entry["file_name"])
        sizes = [usable_size(_number(entry.get("height")), _number(entry.get("width"))) for entry in images]
        segments = [(row, segment) for row, entry in by_row for segment in entry["segments_info"]]
        return PanopticSplit(
            source=source,
            segments=files.listings[0],
            image_ids=image_ids,
            file_names=[str(entry["file_name"]) for entry in images],
            sizes_hw=np.array(sizes, dtype=np.int32).reshape(-1, 2),
            png_names=png_names,
            category_ids=[int(entry["id"]) for entry in categories],
            category_names=[str(entry["name"]) for entry in categories],
            is_thing=np.array([entry.get("isthing", 1) == 1 for entry in categories], dtype=bool),
            image_rows=np.array([row for row, _ in segments], dtype=np.int64),
            segment_ids=np.array([int(segment["id"]) for _, segment in segments], dtype=np.int64),
            category_refs=np.array([int(segment["category_id"]) for _, segment in segments], dtype=np.int64),
            boxes_xywh=np.array([_box(segment) for _, segment in segments], dtype=np.float64).reshape(-1, 4),
            area=np.array([_number(segment.get("area")) for _, segment in segments], dtype=np.float64),
            iscrowd=np.array([segment.get("iscrowd") == 1 for _, segment in segments], dtype=bool),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise AnnotationError(
            f"{source}: an entry has no usable {error}, expected COCO panoptic: images with id and file_name, "
            "annotations with image_id, file_name and segments_info, categories with id, name and isthing"
        ) from error


def load_panoptic_table(files: SplitFiles) -> AnnotationTable:
    """Read the things of a split as objects with boxes; their classes are the categories marked ``isthing``.

    Raises:
        AnnotationError: The file is not COCO panoptic JSON.
        DataError: It has no things.
    """
    split = read_panoptic(files)
    things = [place for place, is_thing in enumerate(split.is_thing) if is_thing]
    if not things:
        raise DataError(f"{split.source}: no category is a thing, so there is nothing to detect")
    stuff = {split.category_ids[place] for place in range(len(split.category_ids))} - {
        split.category_ids[place] for place in things
    }
    rows = np.flatnonzero(~np.isin(split.category_refs, np.array(sorted(stuff), dtype=np.int64)))
    report = Findings(str(split.source))
    for name, png in zip(split.file_names, split.png_names, strict=True):
        if not png:
            report.add("image_without_label_file", name)
    labelled = np.array([bool(png) for png in split.png_names])
    places = np.flatnonzero(labelled)
    return AnnotationTable(
        source=split.source,
        image_ids=split.image_ids[places],
        file_names=[split.file_names[place] for place in places],
        sizes_hw=split.sizes_hw[places],
        category_ids=[split.category_ids[place] for place in things],
        category_names=[split.category_names[place] for place in things],
        annotation_ids=np.arange(1, len(rows) + 1, dtype=np.int64),
        image_refs=split.image_ids[split.image_rows[rows]],
        category_refs=split.category_refs[rows],
        boxes_xywh=split.boxes_xywh[rows],
        area=split.area[rows],
        iscrowd=split.iscrowd[rows],
        report=report.report(),
    )


def read_segments(png: Path) -> dict[int, int]:
    """Count the pixels of each segment id in a PNG file, 0 (unlabelled) included where it occurs.

    Raises:
        ImageError: The file is missing or no image.
    """
    try:
        with Image.open(png) as image:
            pixels = np.asarray(image.convert("RGB")).astype(np.int64)
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{png}: cannot be decoded: {error}; fetch it again") from error
    ids, counts = np.unique(pixels @ np.array([1, 256, 65536]), return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def _entries(content: Any, key: str, source: Path) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AnnotationError(f"{source}: {key!r} is no list of objects; use a panoptic file of COCO")
    return entries


def _box(segment: dict[str, Any]) -> list[float]:
    box = segment.get("bbox")
    return [_number(value) for value in box] if isinstance(box, list) and len(box) == 4 else [np.nan] * 4


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else np.nan
