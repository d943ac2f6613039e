"""Finding and reading COCO panoptic: a JSON file with the segments of each image, a PNG file with their pixels.

Things, of which there can be several, become boxes; segments of stuff have no place in a table of objects. The
pixels of the PNG files are looked at by ``detrkit data check`` only.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.data.faults import Findings
from detrkit.data.formats.base import (
    PANOPTIC_FILE,
    SplitCandidate,
    SplitCandidates,
    SplitFiles,
    canonical_split,
    relative,
    split_of_folder,
    usable_size,
)
from detrkit.data.formats.coco.find import find_image_folder
from detrkit.data.formats.coco.read import load_json
from detrkit.data.table import AnnotationTable
from detrkit.errors import AnnotationError, DataError


def find_panoptic(root: Path) -> SplitCandidates:
    """Find splits in COCO panoptic JSON files with a folder of PNG files."""
    for folder in ("annotations/", "", "*/"):
        found: SplitCandidates = {}
        for file in sorted(root.glob(f"{folder}panoptic_*.json"), key=lambda file: (len(file.stem), file)):
            match = PANOPTIC_FILE.match(file.stem)
            if match and file.is_file() and (split_of_folder(match[1]) or segments_folder(file)):
                candidate = SplitCandidate(file, functools.partial(panoptic_files, file, root))
                found.setdefault(canonical_split(match[1]), candidate)
        if found:
            return found
    return {}


def panoptic_files(file: Path, root: Path, images: Path | None = None) -> SplitFiles:
    """Describe a COCO panoptic JSON file, its images and its PNG files.

    Raises:
        DataError: The folder of PNG files is not there.
    """
    segments = segments_folder(file)
    if segments is None:
        raise DataError(
            f"{file}: the folder of its PNG files is missing; expected {file.with_suffix('')} (for COCO, unpack "
            f"{file.stem}.zip there)"
        )
    reason = f"{relative(file, root)} is COCO panoptic, PNG files in {relative(segments, root)}"
    folder = images or find_image_folder(file, root)
    return SplitFiles(file, folder, "COCO panoptic", reason, "panoptic", (segments,))


def segments_folder(file: Path) -> Path | None:
    """Return the folder of the PNG files of a panoptic file; None if there is none."""
    candidates = (file.with_suffix(""), file.parent / "masks")
    return next((folder for folder in candidates if folder.is_dir()), None)


def load_panoptic_table(files: SplitFiles) -> AnnotationTable:
    """Read the things of a split as objects with boxes; their classes are the categories marked ``isthing``.

    Raises:
        AnnotationError: The file is not COCO panoptic JSON.
        DataError: It lists no images or no categories, or has no things.
    """
    source = files.annotations
    content, report = load_json(source), Findings(str(source))
    images, categories, annotations = (
        _entries(content, key, source) for key in ("images", "categories", "annotations")
    )
    if not images or not categories:
        raise DataError(f"{source}: lists no {'categories' if images else 'images'}; use a panoptic file of COCO")
    try:
        image_ids = np.array([int(entry["id"]) for entry in images], dtype=np.int64)
        row_of = {image_id: row for row, image_id in reversed(list(enumerate(image_ids.tolist())))}
        by_row = [(row_of.get(int(entry["image_id"]), -1), entry) for entry in annotations]
        unknown = sum(row < 0 for row, _ in by_row)
        if unknown:
            raise AnnotationError(f"{source}: {unknown} annotations belong to an image that is not listed")
        # images with a PNG file; the others are left out
        labelled = sorted({row for row, entry in by_row if entry["file_name"]})
        names = [str(entry["file_name"]) for entry in images]
        for row in sorted(set(range(len(images))) - set(labelled)):
            report.add("image_without_label_file", names[row])
        sizes = [
            usable_size(*(_number(images[row].get(side)) for side in ("height", "width"))) for row in labelled
        ]
        # segments of things, and of categories that are not listed, which repair reports
        things = [(int(entry["id"]), str(entry["name"])) for entry in categories if entry.get("isthing", 1) == 1]
        if not things:
            raise DataError(f"{source}: no category is a thing, so there is nothing to detect")
        stuff = {int(entry["id"]) for entry in categories} - {number for number, _ in things}
        listed = [(row, segment) for row, entry in by_row for segment in entry["segments_info"]]
        rows = [row for row, segment in listed if int(segment["category_id"]) not in stuff]
        segments = [segment for _, segment in listed if int(segment["category_id"]) not in stuff]
        return AnnotationTable(
            source=source,
            image_ids=image_ids[labelled],
            file_names=[names[row] for row in labelled],
            sizes_hw=np.array([usable_size(*size) for size in sizes], dtype=np.int32).reshape(-1, 2),
            category_ids=[number for number, _ in things],
            category_names=[name for _, name in things],
            annotation_ids=np.arange(1, len(rows) + 1, dtype=np.int64),
            image_refs=image_ids[rows],
            category_refs=np.array([int(segment["category_id"]) for segment in segments], dtype=np.int64),
            boxes_xywh=np.array([_box(segment) for segment in segments], dtype=np.float64).reshape(-1, 4),
            area=np.array([_number(segment.get("area")) for segment in segments], dtype=np.float64),
            iscrowd=np.array([segment.get("iscrowd") == 1 for segment in segments], dtype=bool),
            report=report.report(),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise AnnotationError(
            f"{source}: an entry has no usable {error}, expected COCO panoptic: images with id and file_name, "
            "annotations with image_id, file_name and segments_info, categories with id, name and isthing"
        ) from error


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
