"""Pictures of failures: the place in its image, labels dashed and green, detections in orange.

Coordinates are pixels of the image until :func:`draw_crop` scales them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hotcoco import mask as rle_masks
from PIL import Image, ImageDraw

from detrkit.evaluation.matching import Matches
from detrkit.visual.page import Picture

ReadImage = Callable[[int], np.ndarray | None]
"""Gives the image of a row of the truth, uint8 ``[H, W, 3]`` in the annotations' pixels; None if it cannot."""

SIDE = 240
"""Longer side of a picture, pixels."""

LABEL_COLOR = (46, 204, 113)
FOUND_COLOR = (255, 122, 24)

_MARGIN = 0.3  # of the longer side of what is shown, on every side
_LEAST_MARGIN = 16
_LEAST_SIDE = 96
_MOST_ZOOM = 4.0
_FAINT = 110  # of 255
_DASH, _GAP = 6, 4
_Sides = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclasses.dataclass(frozen=True)
class Spot:
    """What a picture shows.

    Args:
        image_row: Row of the truth's ``image_ids``.
        labels: Annotations it is about, float64 ``[k, 4]`` XYWH.
        found: Detections it is about, float64 ``[k, 4]`` XYWH.
        caption: Below the picture.
        masks: RLE of the masks of both, where there are any, and their colours.
    """

    image_row: int
    labels: np.ndarray
    found: np.ndarray
    caption: str
    masks: Sequence[tuple[dict[str, Any], tuple[int, int, int]]] = ()


def draw_spots(
    spots: Sequence[Spot],
    matches: Matches,
    score: float,
    read_image: ReadImage,
    look: Callable[[int, np.ndarray], None] | None = None,
    also: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Picture], int]:
    """Draw the spots' pictures, each image read once; an empty picture where the image cannot be read.

    Args:
        spots: What to show.
        matches: The neighbours that are drawn faintly.
        score: Detections below are no neighbours.
        read_image: See :data:`ReadImage`.
        look: Called with the row of each image of ``also`` and its pixels.
        also: Rows of more images to read.
        progress: Called with images done and images in all.

    Returns:
        The pictures, and the number of images that could not be read.
    """
    by_image: dict[int, list[int]] = {}
    for number, spot in enumerate(spots):
        by_image.setdefault(spot.image_row, []).append(number)
    pictures = [Picture(b"", spot.caption, (0, 0)) for spot in spots]
    wanted = set(also)
    rows = sorted(wanted.union(by_image))
    unreadable = 0
    for done, row in enumerate(rows, start=1):
        image = read_image(row)
        if image is None:
            unreadable += 1
        else:
            if look is not None and row in wanted:
                look(row, image)
            neighbours = _neighbours(matches, row, score)
            for number in by_image.get(row, ()):
                pictures[number] = Picture.of(draw_crop(image, spots[number], *neighbours), spots[number].caption)
        if progress is not None:
            progress(done, len(rows))
    return pictures, unreadable


def draw_crop(image: np.ndarray, spot: Spot, labels: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Draw the spot with some of its surroundings, uint8 ``[h, w, 3]``, the longer side about ``SIDE`` pixels.

    Args:
        image: uint8 ``[H, W, 3]``.
        spot: Its boxes are drawn strongly.
        labels: Other annotations of the image, drawn faintly, float64 ``[k, 4]`` XYWH.
        found: Other detections, float64 ``[k, 4]`` XYWH.
    """
    # the part of the image, enlarged or made smaller
    left, top, right, bottom = _frame(np.concatenate([spot.labels, spot.found]), image.shape[1], image.shape[0])
    zoom = min(SIDE / max(right - left, bottom - top), _MOST_ZOOM)
    size = (max(1, round((right - left) * zoom)), max(1, round((bottom - top) * zoom)))
    part = image[top:bottom, left:right]
    for encoded, color in spot.masks:
        inside = rle_masks.decode(encoded)[top:bottom, left:right, None] > 0
        part = np.where(inside, part // 2 + np.array(color, dtype=np.uint8) // 2, part)
    crop = Image.fromarray(np.ascontiguousarray(part))
    canvas = crop.resize(size, Image.Resampling.BICUBIC if zoom > 1 else Image.Resampling.LANCZOS).convert("RGBA")
    sheet = Image.new("RGBA", size)
    pen = ImageDraw.Draw(sheet)
    corner = np.array([left, top], dtype=np.float64)

    def scaled(box: np.ndarray) -> _Sides:
        low, high = (box[:2] - corner) * zoom, (box[:2] + box[2:] - corner) * zoom
        # Boxes on the edge of the picture are drawn inside it; huge ones need not be drawn far outside.
        low, high = np.clip(low, -9, np.array(size) + 8), np.clip(high, -9, np.array(size) + 8)
        last = np.array(size) - 2
        x0, y0 = np.where((low < 1) & (low > -6), 1, low).tolist()
        x1, y1 = np.where((high > last) & (high < last + 7), last, high).tolist()
        return x0, y0, max(x0, x1), max(y0, y1)

    # what else is near faintly, then what the picture is about
    for box in labels:
        _dashed(pen, scaled(box), (*LABEL_COLOR, _FAINT), 1)
    for box in found:
        pen.rectangle(scaled(box), outline=(*FOUND_COLOR, _FAINT), width=1)
    for box in spot.found:
        x0, y0, x1, y1 = scaled(box)
        pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0, 160), width=4)
        pen.rectangle((x0, y0, x1, y1), outline=(*FOUND_COLOR, 255), width=2)
    for box in spot.labels:
        x0, y0, x1, y1 = scaled(box)
        _dashed(pen, (x0 - 1, y0 - 1, x1 + 1, y1 + 1), (0, 0, 0, 160), 4)
        _dashed(pen, (x0, y0, x1, y1), (*LABEL_COLOR, 255), 2)
    return np.asarray(Image.alpha_composite(canvas, sheet).convert("RGB"))


def _neighbours(matches: Matches, row: int, score: float) -> tuple[np.ndarray, np.ndarray]:
    """Return annotations and shown detections of an image."""
    truth, found = matches.truth, matches.found
    first, last = np.searchsorted(truth.image_rows, (row, row + 1))
    start, stop = np.searchsorted(found.image_rows, (row, row + 1))
    boxes = found.boxes_xywh[start:stop]
    return truth.boxes_xywh[first:last], boxes[found.scores[start:stop] >= score]


def _frame(boxes: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a part of the image with the boxes and a margin, at least a pixel."""
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    limit = np.array([width, height], dtype=np.float64)
    low, high = np.clip(low, 0, limit), np.clip(high, 0, limit)
    margin = max(_MARGIN * float((high - low).max()), _LEAST_MARGIN)
    half = np.maximum((high - low) / 2 + margin, min(_LEAST_SIDE, width, height) / 2)
    centre = (low + high) / 2
    left, top = np.floor(np.maximum(centre - half, 0)).astype(int).tolist()
    right, bottom = np.ceil(np.minimum(centre + half, limit)).astype(int).tolist()
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _dashed(pen: ImageDraw.ImageDraw, box: _Sides, color: tuple[int, int, int, int], width: int) -> None:
    x0, y0, x1, y1 = box
    dashes = []
    for start in np.arange(x0, x1, _DASH + _GAP).tolist():
        dashes += [(start, y, min(start + _DASH, x1), y) for y in (y0, y1)]
    for start in np.arange(y0, y1, _DASH + _GAP).tolist():
        dashes += [(x, start, x, min(start + _DASH, y1)) for x in (x0, x1)]
    for dash in dashes:
        pen.line(dash, fill=color, width=width)
