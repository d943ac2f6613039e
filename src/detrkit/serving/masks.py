"""Masks in answers."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import msgspec
import numpy as np
from PIL import Image

from detrkit.detections import ImageDetections
from detrkit.masks import segments_info
from detrkit.runtimes.bundle import MasksRecord
from detrkit.serving.contract import PanopticPicture, Segment, Segmentation
from detrkit.serving.models import ServedModel
from detrkit.serving.refusal import RefusedError
from detrkit.serving.service import Found


def settings_of(model: ServedModel) -> MasksRecord:
    """Return how a model's masks are made.

    Raises:
        RefusedError: It has none.
    """
    how = model.predictor.bundle.manifest.masks
    if not how:
        raise RefusedError(
            "invalid", f"the model {model.name} has no masks, only boxes; leave masks and panoptic out"
        )
    return how


def check_pixels(found: Sequence[Found], counts: Sequence[int], most: int) -> None:
    """Refuse masks that would take long to make and to send.

    Args:
        found: Pictures.
        counts: Masks of each.
        most: Pixels that they may have together.

    Raises:
        RefusedError: They have more.
    """
    pixels = sum(math.prod(one.size_hw) * count for one, count in zip(found, counts, strict=True))
    if pixels > most:
        raise RefusedError(
            "too_large",
            f"{sum(counts)} masks have {pixels:,} pixels together, expected at most {most:,}; ask for those of a "
            "higher score, for fewer pictures, or for smaller ones",
        )


def segmentations(model: ServedModel, found: ImageDetections) -> list[Segmentation]:
    """Return the masks of detections as COCO's compressed RLE."""
    assert found.masks is not None
    masks = found.masks.encode(settings_of(model).threshold)
    return [msgspec.convert(mask, Segmentation) for mask in masks]


def panoptic_picture(model: ServedModel, found: Found) -> PanopticPicture:
    """Return the panoptic picture of all detections, whatever threshold and classes were asked for."""
    segments = model.predictor.panoptic(found.whole)
    assert segments is not None
    file = io.BytesIO()
    Image.fromarray(segments.colors()).save(file, "PNG", compress_level=1)
    infos = segments_info(segments, model.predictor.class_map.category_ids)
    entries = [{**info, "score": score} for info, score in zip(infos, segments.scores.tolist(), strict=True)]
    return PanopticPicture(base64.b64encode(file.getvalue()).decode(), msgspec.convert(entries, list[Segment]))


def panoptic_count(model: ServedModel, found: Found) -> int:
    """Return the number of masks that :func:`panoptic_picture` merges."""
    return int(np.sum(found.whole.scores > settings_of(model).panoptic_score))
