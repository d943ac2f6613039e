"""A repaired copy of panoptic annotations and their PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrkit.curation.check.panoptic import PanopticFiles, Segments, read_mask, segment_ids
from detrkit.curation.fix.changes import Change
from detrkit.data.formats.coco.write import write_coco_json
from detrkit.data.formats.output import inside_name, place_image


def fix_panoptic(files: PanopticFiles, folder: Path, copy: bool, changes: list[Change]) -> None:
    """Write ``annotations/NAME.json`` and its PNG files below ``folder``."""
    content = files.content
    categories = {entry.get("id") for entry in content.get("categories") or []}
    sizes = {entry.get("id"): (entry.get("height"), entry.get("width")) for entry in content.get("images", [])}
    target = folder / "annotations" / files.name
    kept = []
    for entry in content["annotations"]:
        name = str(entry.get("file_name"))
        mask = read_mask(files, entry)
        fault = _entry_fault(entry, mask, sizes)
        if fault or isinstance(mask, str):
            changes.append(Change(files.name, fault or "panoptic_png_missing", name))
            continue
        fixed, gone = _fixed_segments(files.name, entry, mask, categories, changes)
        kept.append({**entry, "segments_info": fixed})
        path = target / inside_name(name)
        if gone:
            _write_without(files.masks / name, path, gone)
        else:
            place_image(files.masks / name, path, copy=copy)
    write_coco_json(folder / "annotations" / f"{files.name}.json", {**content, "annotations": kept})


def _entry_fault(entry: Mapping[str, Any], mask: Segments | str, sizes: Mapping[Any, Any]) -> str:
    if isinstance(mask, str):
        return "panoptic_png_missing"
    size = sizes.get(entry.get("image_id"))
    if size is None:
        return "unknown_image_id"
    return "" if size == mask.size_hw else "panoptic_size_mismatch"


def _fixed_segments(
    split: str, entry: Mapping[str, Any], mask: Segments, categories: set[Any], changes: list[Change]
) -> tuple[list[dict[str, Any]], list[int]]:
    """The segments that stay, as the pixels have them, and the ids whose pixels go."""
    at_id = {segment_id: at for at, segment_id in enumerate(mask.ids.tolist())}
    fixed: list[dict[str, Any]] = []
    done: set[int] = set()
    for segment in entry.get("segments_info") or []:
        segment_id = segment.get("id")
        what = f"{entry.get('file_name')}: segment {segment_id}"
        fault = ""
        if segment_id in done:
            fault = "panoptic_duplicate_segment"
        elif segment_id not in at_id:
            fault = "panoptic_segment_missing"
        elif segment.get("category_id") not in categories:
            fault = "panoptic_unknown_category"
        if fault:
            changes.append(Change(split, fault, what))
            continue
        done.add(segment_id)
        at = at_id[segment_id]
        measured = {"area": int(mask.pixels[at]), "bbox": mask.boxes_xywh[at].tolist()}
        for field, kind in (("area", "panoptic_area_mismatch"), ("bbox", "panoptic_box_mismatch")):
            before = segment.get(field)
            if before is not None and _is_far(before, measured[field]):
                changes.append(Change(split, kind, what, field, before, measured[field]))
                segment = {**segment, field: measured[field]}
        fixed.append(dict(segment))
    gone = [segment_id for segment_id in at_id if segment_id not in done]
    for segment_id in gone:
        what = f"{entry.get('file_name')}: pixels of segment {segment_id}"
        changes.append(Change(split, "panoptic_segment_unlisted", what, "id", segment_id, 0))
    return fixed, gone


def _is_far(before: Any, after: Any) -> bool:
    try:
        return bool(np.abs(np.array(before, dtype=float) - np.array(after, dtype=float)).max() > 1)
    except (ValueError, TypeError):
        return True


def _write_without(source: Path, target: Path, gone: list[int]) -> None:
    ids = segment_ids(source)
    ids[np.isin(ids, gone)] = 0
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colors).save(target, format="PNG")
