"""Masks of detections, encoded as soon as they are made: of an image's pixels nothing stays in memory.

Shapes: K detections of one image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
from hotcoco import mask as rle_masks

from detrkit.classes import ClassMap
from detrkit.config import MasksConfig
from detrkit.data.index import CocoIndex
from detrkit.data.split import Split
from detrkit.detections import ImageDetections, MaskedDetections
from detrkit.detectors.stages import merge_masks
from detrkit.errors import DataError
from detrkit.evaluation.coco import ImageResults
from detrkit.masks import PanopticSegments, encode_ids


def has_masks(index: CocoIndex) -> bool:
    """Return True if a split was read with the masks of its objects."""
    return (index.masks if index.written is None else index.written.masks) is not None


def encode_masks(
    found: Iterable[tuple[int, ImageDetections | ImageResults]],
    split: Split,
    how: MasksConfig,
    class_map: ClassMap,
    max_detections: int,
) -> Iterator[tuple[int, ImageDetections | ImageResults]]:
    """Give detections with their masks as RLE, and with the panoptic picture where the data set is panoptic.

    Args:
        found: Image id and detections of one image after the other; without masks they are given as they are.
        split: The images.
        how: How masks are made.
        class_map: Classes of the detections.
        max_detections: Of each image and class; of others no mask is made.

    Raises:
        DataError: A picture has another size than its annotations say, so that masks cannot be compared.
    """
    index = split.index
    rows = {image_id: row for row, image_id in enumerate(index.image_ids.tolist())}
    stuff = class_map.stuff if split.files.format == "panoptic" else None
    for image_id, detections in found:
        if not isinstance(detections, MaskedDetections):
            yield image_id, detections
            continue
        row = rows[image_id]
        (height, width), (own_height, own_width) = index.sizes_hw[row].tolist(), detections.masks.size_hw
        if (height, width) != (own_height, own_width):
            raise DataError(
                f"{index.file_name(row)} has {own_width} x {own_height} pixels, its annotations are for {width} x "
                f'{height}: masks cannot be compared; run "detrkit data check"'
            )
        yield image_id, _encode(detections, how, stuff, max_detections)


def encode_picture(picture: PanopticSegments) -> ImageResults:
    """Return the segments of a panoptic picture, their masks as RLE."""
    found = encode_ids(picture.ids)
    encoded = [found[number] for number in range(1, len(picture.class_ids) + 1)]
    boxes = np.asarray(rle_masks.to_bbox(encoded) if encoded else [], dtype=np.float64).reshape(-1, 4)
    return ImageResults(boxes, picture.scores, picture.class_ids, _counts(encoded))


def _encode(
    found: MaskedDetections, how: MasksConfig, stuff: Collection[int] | None, max_detections: int
) -> ImageResults:
    segments = None if stuff is None else encode_picture(merge_masks(found, how, stuff))
    # those that count: best first, so many of each class
    counted = np.zeros(len(found.scores), dtype=bool)
    for class_id in np.unique(found.class_ids):
        counted[np.flatnonzero(found.class_ids == class_id)[:max_detections]] = True
    found = found.take(counted)
    boxes = np.array(found.boxes_xyxy, dtype=np.float32)
    boxes[:, 2:] -= boxes[:, :2]
    rle = _counts(found.masks.encode(how.threshold))
    return ImageResults(boxes, found.scores, found.class_ids, rle, segments)


def _counts(encoded: list[dict[str, str]]) -> np.ndarray:
    return np.array([entry["counts"] for entry in encoded], dtype=object)
