"""Panoptic annotations against the pixels of their PNG files.

A pixel's segment id is R + 256 G + 65536 B, 0 where nothing is labelled.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from detrkit.data.faults import Findings, Location
from detrkit.data.formats.base import walk_files
from detrkit.data.formats.coco.read import load_json
from detrkit.data.index import check_inside
from detrkit.data.segmentation import Segments, read_segments
from detrkit.errors import AnnotationError, DataError

PATTERNS = ("panoptic_*.json", "annotations/panoptic_*.json", "*/panoptic_*.json", "*/annotations/panoptic_*.json")
AREA_SHARE, AREA_PIXELS = 0.01, 2
BOX_PIXELS = 2
VOID_SHARE = 0.8
"""Images with more pixels of no segment are named; COCO has some with 60 %."""
_MODES = ("RGB", "RGBA")
_IDS = ("id", "image_id", "category_id")


class PanopticFiles(NamedTuple):
    """A panoptic JSON file, the folder of its PNG files, and its content."""

    name: str
    json: Path
    masks: Path
    content: Mapping[str, Any]


def find_panoptic(data: Path, found: Findings) -> list[PanopticFiles]:
    """Find panoptic annotations in a data set, whatever else it holds."""
    if data.is_file():
        files = [data] if data.name.startswith("panoptic_") else []
    else:
        files = list(dict.fromkeys(path for pattern in PATTERNS for path in sorted(data.glob(pattern))))
    result = []
    for path in files:
        name = path.stem
        try:
            content = load_json(path)
        except DataError as error:
            found.add("annotations_unreadable", str(error), Location(name))
            continue
        entries = content.get("annotations")
        is_panoptic = isinstance(entries, list) and any(
            isinstance(entry, dict) and "segments_info" in entry for entry in entries
        )
        if is_panoptic:
            result.append(PanopticFiles(name, path, _mask_folder(path, content), content))
    return result


def check_panoptic(
    files: PanopticFiles, found: Findings, workers: int | None, progress: Callable[[str, int, int], None] | None
) -> None:
    """Check the categories, compare the segments of every image with its PNG, and look for PNG files of none."""
    categories = {entry.get("id"): entry.get("isthing") for entry in _objects(files.content, "categories")}
    for category, is_thing in categories.items():
        if is_thing not in (0, 1):
            found.add("panoptic_isthing_missing", f"category {category}: {is_thing}", Location(files.name))
    sizes = {entry.get("id"): entry for entry in _objects(files.content, "images")}
    entries = _objects(files.content, "annotations")
    for image, count in Counter(entry.get("image_id") for entry in entries).items():
        if count > 1:
            found.add("panoptic_image_twice", f"image {image}", Location(files.name), count - 1)
    if files.masks == files.json.with_suffix(""):  # no folder that splits share
        for name in sorted(
            set(walk_files(files.masks, ".png")) - {str(entry.get("file_name")) for entry in entries}
        ):
            found.add("panoptic_png_unlisted", name, Location(files.name))
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        masks = pool.map(lambda entry: read_mask(files, entry), entries)
        for done, (entry, mask) in enumerate(zip(entries, masks, strict=True)):
            _check_entry(files, entry, mask, categories, sizes, found)
            if progress is not None:
                progress("panoptic masks", done + 1, len(entries))


def read_mask(files: PanopticFiles, entry: Mapping[str, Any]) -> Segments | str:
    """Read the segments of an entry's PNG, or why there are none."""
    name = str(entry.get("file_name", ""))
    try:
        check_inside(name, files.masks)
        with Image.open(files.masks / name) as image:
            if image.mode not in _MODES:
                return f"has pixels of mode {image.mode}, expected RGB: an id is R + 256 G + 65536 B"
        return read_segments(files.masks / name)
    except AnnotationError as error:
        return str(error)
    except FileNotFoundError:
        return "there is no such file"
    except Exception as error:  # Pillow's plugins raise nearly anything on a corrupt file
        return f"cannot be decoded: {error}"


def _objects(content: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    """Return the entries of a list that are objects; ids that are lists or objects themselves become text."""
    entries = content.get(key)
    found = entries if isinstance(entries, list) else []
    objects: list[dict[str, Any]] = [entry for entry in found if isinstance(entry, dict)]
    odd = [(entry, name) for entry in objects for name in _IDS if isinstance(entry.get(name), list | dict)]
    for entry, name in odd:
        entry[name] = str(entry[name])
    return objects


def _check_entry(
    files: PanopticFiles,
    entry: Mapping[str, Any],
    mask: Segments | str,
    categories: Mapping[Any, Any],
    sizes: Mapping[Any, Mapping[str, Any]],
    found: Findings,
) -> None:
    """Check the entry of one image by itself, then against its PNG."""
    name, image = str(entry.get("file_name")), sizes.get(entry.get("image_id"))
    listed = _objects(entry, "segments_info")

    def report(kind: str, words: str, count: int = 1) -> None:
        found.add(kind, f"{name}: {words}", Location(files.name), count)

    for segment in listed:
        if segment.get("category_id") not in categories:
            category = segment.get("category_id")
            report("panoptic_unknown_category", f"segment {segment.get('id')} has category {category}")
    stuff = Counter(kind for one in listed if categories.get(kind := one.get("category_id"), 1) == 0)
    for category, count in stuff.items():
        if count > 1:
            report("panoptic_stuff_split", f"{count} segments of category {category}", count - 1)
    for segment_id, count in Counter(segment.get("id") for segment in listed).items():
        if count > 1:
            report("panoptic_duplicate_segment", f"segment {segment_id}", count - 1)
    if image is None:
        report("unknown_image_id", f"image {entry.get('image_id')}")
    if isinstance(mask, str):
        report("panoptic_png_missing", mask)
    elif image is not None and (image.get("height"), image.get("width")) != mask.size_hw:
        size = f"{image.get('width')} x {image.get('height')}"
        report("panoptic_size_mismatch", f"{mask.size_hw[1]} x {mask.size_hw[0]} pixels, the image has {size}")
    else:
        _check_segments(listed, mask, report)


def _check_segments(
    listed: Sequence[Mapping[str, Any]], mask: Segments, report: Callable[[str, str], None]
) -> None:
    """Compare the segments that are listed, each id once, with those in the pixels."""
    at_id = {segment_id: at for at, segment_id in enumerate(mask.ids.tolist())}
    by_id = {segment.get("id"): segment for segment in reversed(listed)}
    for segment_id, segment in reversed(by_id.items()):
        if segment_id not in at_id:
            report("panoptic_segment_missing", f"segment {segment_id}")
            continue
        at = at_id[segment_id]
        pixels, area = int(mask.pixels[at]), segment.get("area")
        if isinstance(area, (int, float)) and abs(area - pixels) > max(AREA_PIXELS, AREA_SHARE * pixels):
            report("panoptic_area_mismatch", f"segment {segment_id} has area {area}, {pixels} pixels")
        box, seen = segment.get("bbox"), mask.boxes_xywh[at]
        if _is_box(box) and np.abs(_corners(np.array(box)) - _corners(seen)).max() > BOX_PIXELS:
            report("panoptic_box_mismatch", f"segment {segment_id} has box {box}, its pixels {seen.tolist()}")
    for segment_id, at in at_id.items():
        if segment_id not in by_id:
            report("panoptic_segment_unlisted", f"segment {segment_id}, {mask.pixels[at]} pixels")
    void = 1 - mask.pixels.sum() / max(mask.size_hw[0] * mask.size_hw[1], 1)
    if void > VOID_SHARE:
        report("panoptic_void", f"{100 * void:.0f} % of the pixels")


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box)


def _corners(xywh: np.ndarray) -> np.ndarray:
    return np.concatenate([xywh[:2], xywh[:2] + xywh[2:]])


def _mask_folder(path: Path, content: Mapping[str, Any]) -> Path:
    """Find the folder of the PNG files: of the name of the JSON file, or one beside it that has the first file."""
    names = [str(entry.get("file_name")) for entry in content["annotations"][:20] if isinstance(entry, dict)]
    beside = [path.with_suffix(""), path.parent / path.stem.removeprefix("panoptic_"), path.parent]
    beside += sorted(entry for entry in path.parent.iterdir() if entry.is_dir())
    beside += sorted(entry for entry in path.parent.parent.glob("*") if entry.is_dir())
    for folder in beside:
        if any((folder / name).is_file() for name in names if ".." not in name and not name.startswith("/")):
            return folder
    return beside[0]
