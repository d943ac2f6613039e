"""Masks of files of results: RLE and polygons of COCO's result format, PNG files of COCO panoptic.

Shapes: K detections, or segments, of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from hotcoco import mask as rle_masks

from detrkit.classes import SizeHW
from detrkit.data.formats.panoptic import segments_folder
from detrkit.data.index import check_inside
from detrkit.data.segmentation import MaskExtent, mask_extent, mask_rle, read_ids_of
from detrkit.detectors.match_results import ImageKey, Results
from detrkit.errors import DataError
from detrkit.evaluation.coco import ImageResults
from detrkit.masks import encode_ids, encode_mask

PANOPTIC_EXPECTED = (
    '{"annotations": [{"image_id": 139, "file_name": "139.png", "segments_info": [{"id": 1, "category_id": 1}, '
    "...]}, ...]} and a folder of PNG files of the name of the JSON file"
)


class _Segment(msgspec.Struct, gc=False):
    id: int
    category_id: int | str
    score: float = 1.0


class _Picture(msgspec.Struct):
    file_name: str
    segments_info: list[_Segment]
    image_id: int | str | None = None


class _PanopticFile(msgspec.Struct):
    annotations: list[_Picture]


def read_panoptic_results(path: Path, content: bytes) -> Results:
    """Read a file of panoptic pictures, of detrkit or any other program: a row for each segment.

    Raises:
        DataError: It is none, the folder of its PNG files is missing, or an image has several pictures.
    """
    try:
        pictures = msgspec.json.decode(content, type=_PanopticFile).annotations
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: {error}; expected {PANOPTIC_EXPECTED}") from error
    beside = bool(pictures) and (path.parent / pictures[0].file_name).is_file()  # as predict writes them
    folder = path.parent if beside else segments_folder(path)
    if folder is None:
        raise DataError(f"{path}: the folder of its PNG files is missing; expected {path.with_suffix('')}")
    for one in pictures:
        check_inside(one.file_name, folder)
    keys = [ImageKey(one.image_id, one.file_name if one.image_id is None else None) for one in pictures]
    if len(set(keys)) < len(keys):
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"{path}: {repeated} has several panoptic pictures; expected one of each image")
    files = [folder / one.file_name for one in pictures]
    notes = [f"{path.name} holds panoptic pictures: AP is that of their segments, which cannot overlap."]
    empty = sum(not one.segments_info for one in pictures)
    if empty:
        notes.append(f"{empty:,} of {len(pictures):,} pictures of {path.name} list no segment: they find nothing.")
    segments = [(number, segment) for number, one in enumerate(pictures) for segment in one.segments_info]
    listed = [frozenset(segment.id for segment in one.segments_info) for one in pictures]
    categories: dict[int | str, int] = {}
    of_category = [categories.setdefault(segment.category_id, len(categories)) for _, segment in segments]
    return Results(
        image_keys=keys,
        images=np.array([number for number, _ in segments], dtype=np.int64),
        category_keys=list(categories),
        categories=np.array(of_category, dtype=np.int64),
        boxes=np.zeros((len(segments), 4)),
        scores=np.array([segment.score for _, segment in segments], dtype=np.float64),
        is_ours=False,
        notes=tuple(notes),
        masks=[(files[at], segment.id, listed[at]) for at, segment in segments],
        is_panoptic=True,
    )


def give_masks(
    results: ImageResults, masks: Sequence[Any], size_hw: SizeHW, where: str, is_panoptic: bool
) -> ImageResults:
    """Return an image's detections with their masks as RLE, and as segments if they are of a panoptic picture.

    Args:
        results: Detections.
        masks: Of each, as its file has it.
        size_hw: Size of the image.
        where: The file.
        is_panoptic: They are segments; their boxes are taken from their pixels.

    Raises:
        DataError: A mask is of another size, cannot be decoded, or is not in its PNG file.
    """
    if is_panoptic:
        encoded = _read_picture(masks, size_hw, where)
    else:
        encoded = [_encode(one, size_hw, where) for one in masks]
    rle = np.array([entry["counts"] for entry in encoded], dtype=object)
    if not is_panoptic:
        return results._replace(rle=rle)
    boxes = np.asarray(rle_masks.to_bbox(encoded) if encoded else [], dtype=np.float64).reshape(-1, 4)
    results = results._replace(boxes_xywh=boxes, rle=rle)
    return results._replace(segments=results)


def mask_box(mask: Any, where: str) -> list[float]:
    """Return the box of a result that has a mask alone, [x, y, width, height]; of an empty mask one of no size.

    Raises:
        DataError: The mask cannot be read.
    """
    low_high = np.nan_to_num(_extent(mask, None, where).bounds_xyxy)
    return [*low_high[:2].tolist(), *(low_high[2:] - low_high[:2]).tolist()]


def _extent(mask: Any, size_hw: SizeHW | None, where: str) -> MaskExtent:
    try:
        return mask_extent(mask, size_hw)
    except ValueError as error:
        raise DataError(
            f"{where}: a segmentation cannot be used: {error}; expected polygons or COCO's RLE"
        ) from error


def _encode(mask: Any, size_hw: SizeHW, where: str) -> dict[str, Any]:
    """Return a mask as compressed RLE, one that is missing or holds nothing as an empty one."""
    if not np.isfinite(_extent(mask, size_hw, where).bounds_xyxy).all():
        return encode_mask(np.zeros(size_hw, dtype=bool))
    encoded = mask_rle(mask, size_hw)
    return {**encoded, "counts": encoded["counts"].decode("ascii")}


def _read_picture(
    masks: Sequence[tuple[Path, int, frozenset[int]]], size_hw: SizeHW, where: str
) -> list[dict[str, Any]]:
    """Return the masks of an image's segments as RLE; the set is of all segments that its picture should hold."""
    if not masks:
        return []
    file, _, listed = masks[0]
    if any(other != file for other, *_ in masks):
        raise DataError(f"{where}: {file} is not the only picture of its image; expected one of each")
    found = encode_ids(read_ids_of(file, size_hw))
    seen = found.keys() - {0}
    if seen != listed:
        only = (
            f"{sorted(seen - listed)[:5]} are in its pixels alone, {sorted(listed - seen)[:5]} in the JSON alone"
        )
        raise DataError(f"{where}: of the segments of {file}, {only}; expected the same in both")
    return [found[segment_id] for _, segment_id, _ in masks]
