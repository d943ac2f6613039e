"""Finding and reading COCO panoptic: a JSON file with the segments of each image, a PNG file with their pixels.

Things, of which there can be several, become boxes; segments of stuff have no place in a table of objects. The
pixels of the PNG files are looked at by ``detrkit data check`` only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
from detrkit.data.formats.coco.read import crowd_flags, json_number, load_json
from detrkit.data.formats.ids import IdNumbers
from detrkit.data.index import check_inside, list_folder
from detrkit.data.masks import ObjectMasks, segment_text
from detrkit.data.segmentation import read_segments
from detrkit.data.table import AnnotationTable, positions_of
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
    folder = find_image_folder(file, root, images)
    return SplitFiles(file, folder, "COCO panoptic", reason, "panoptic", (segments,))


def segments_folder(file: Path) -> Path | None:
    """Return the folder of the PNG files of a panoptic file; None if there is none."""
    candidates = (file.with_suffix(""), file.parent / "masks")
    return next((folder for folder in candidates if folder.is_dir()), None)


def load_panoptic_table(files: SplitFiles, masks: bool = False) -> AnnotationTable:
    """Read the things of a split as objects with boxes; their classes are the categories marked ``isthing``.

    Args:
        files: The split.
        masks: Read stuff, too, as objects, and the masks of all; images whose PNG file is missing are left out.

    Raises:
        AnnotationError: The file is not COCO panoptic JSON.
        DataError: It lists no images or no categories, or has no things.
    """
    source = files.annotations
    report = Findings(str(source))
    content = load_json(source, report)
    images, categories, annotations = (
        _entries(content, key, source) for key in ("images", "categories", "annotations")
    )
    if not images or not categories:
        raise DataError(f"{source}: lists no {'categories' if images else 'images'}; use a panoptic file of COCO")
    try:
        # ids as numbers
        of_images, of_categories = IdNumbers("image", report), IdNumbers("category", report)
        image_ids = of_images.take([entry["id"] for entry in images], "id", "images")
        image_refs = of_images.take([entry["image_id"] for entry in annotations], "image_id", "annotations")
        category_ids = of_categories.take([entry["id"] for entry in categories], "id", "categories")
        listed = [
            (place, segment) for place, entry in enumerate(annotations) for segment in entry["segments_info"]
        ]
        category_refs = of_categories.take(
            [segment["category_id"] for _, segment in listed], "category_id", "segments_info"
        )
        image_id_texts = of_images.settle(image_ids, image_refs)
        category_id_texts = of_categories.settle(category_ids, category_refs)
        rows_of_entries = positions_of(image_refs, image_ids)
        by_row = list(zip(rows_of_entries.tolist(), annotations, strict=True))
        unknown = sum(row < 0 for row, _ in by_row)
        if unknown:
            raise AnnotationError(f"{source}: {unknown} annotations belong to an image that is not listed")
        # images with a PNG file; the others are left out
        lost = _lost_files(annotations, files.listings[0], report) if masks else set()
        labelled = sorted({row for row, entry in by_row if entry["file_name"] and entry["file_name"] not in lost})
        names = [str(entry["file_name"]) for entry in images]
        for row in sorted(set(range(len(images))) - {row for row, entry in by_row if entry["file_name"]}):
            report.add("image_without_label_file", names[row])
        sizes = [
            usable_size(*(json_number(images[row].get(side)) for side in ("height", "width"))) for row in labelled
        ]
        # segments of things, and of categories that are not listed, which repair reports
        numbers = category_ids.tolist()
        things = [
            (number, str(entry["name"]))
            for number, entry in zip(numbers, categories, strict=True)
            if entry.get("isthing", 1) == 1
        ]
        if not things:
            raise DataError(f"{source}: no category is a thing, so there is nothing to detect")
        stuff = set(numbers) - {number for number, _ in things}
        kept = [
            at
            for at, number in enumerate(category_refs.tolist())
            if (masks or number not in stuff) and annotations[listed[at][0]]["file_name"] not in lost
        ]
        places, segments = [listed[at][0] for at in kept], [listed[at][1] for at in kept]
        boxes = np.array([_box(segment) for segment in segments], dtype=np.float64).reshape(-1, 4)
        _take_boxes_of_pixels(boxes, places, segments, annotations, files.listings[0], report)
        classes = (
            list(zip(numbers, [str(entry["name"]) for entry in categories], strict=True)) if masks else things
        )
        texts = (
            segment_text(annotations[place]["file_name"], number)
            if type(number := segment.get("id")) is int
            else b""
            for place, segment in zip(places, segments, strict=True)
        )
        return AnnotationTable(
            source=source,
            image_ids=image_ids[labelled],
            file_names=[names[row] for row in labelled],
            sizes_hw=np.array([usable_size(*size) for size in sizes], dtype=np.int32).reshape(-1, 2),
            category_ids=[number for number, _ in classes],
            category_names=[name for _, name in classes],
            annotation_ids=np.arange(1, len(kept) + 1, dtype=np.int64),
            image_refs=image_ids[rows_of_entries[places]],
            category_refs=category_refs[kept],
            boxes_xywh=boxes,
            area=np.array([json_number(segment.get("area")) for segment in segments], dtype=np.float64),
            iscrowd=crowd_flags([segment.get("iscrowd", 0) for segment in segments], report),
            report=report.report(),
            image_id_texts=image_id_texts,
            category_id_texts=category_id_texts,
            masks=ObjectMasks.pack(texts, files.listings[0]) if masks else None,
            stuff=stuff if masks else (),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise AnnotationError(
            f"{source}: an entry has no usable {error}, expected COCO panoptic: images with id and file_name, "
            "annotations with image_id, file_name and segments_info, categories with id, name and isthing"
        ) from error


def _lost_files(annotations: Sequence[dict[str, Any]], folder: Path, report: Findings) -> set[str]:
    """Return the names of PNG files that are not there; their images are left out with their segments.

    Raises:
        AnnotationError: A name leads out of the folder.
    """
    there, lost = list_folder(folder), set()
    for entry in annotations:
        name = str(entry["file_name"])
        check_inside(name, folder)
        if name not in there and not (folder / name).is_file():
            lost.add(name)
            report.add("panoptic_png_missing", name, objects=len(entry["segments_info"]))
    return lost


def _take_boxes_of_pixels(
    boxes: np.ndarray,
    places: Sequence[int],
    segments: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    folder: Path,
    report: Findings,
) -> None:
    """Put the bounds of their pixels in place of boxes that are not given, where the PNG file can be read."""
    read = functools.lru_cache(maxsize=1)(read_segments)
    for at in np.flatnonzero(np.isnan(boxes).all(axis=1)).tolist():
        name = str(annotations[places[at]]["file_name"])
        try:
            check_inside(name, folder)
            pixels = read(folder / name)
        except Exception:  # Pillow's plugins raise nearly anything; left out and counted as box_missing later
            continue
        found = np.flatnonzero(pixels.ids == segments[at].get("id"))
        if len(found):
            boxes[at] = pixels.boxes_xywh[found[0]]
            report.add("box_from_mask", f"segment {segments[at]['id']} of {name}: {boxes[at].tolist()}")


def _entries(content: Any, key: str, source: Path) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AnnotationError(f"{source}: {key!r} is no list of objects; use a panoptic file of COCO")
    return entries


def _box(segment: dict[str, Any]) -> list[float]:
    box = segment.get("bbox")
    return [json_number(value) for value in box] if isinstance(box, list) and len(box) == 4 else [np.nan] * 4
