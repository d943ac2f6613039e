"""Panoptic pictures side by side with what is annotated: the image, its segments, those that were found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hotcoco import mask as rle_masks
from PIL import Image, ImageDraw

from detrkit.errors import counted
from detrkit.evaluation.panoptic import FOUND, LOSSES, SegmentMatches
from detrkit.evaluation.truth import as_rle
from detrkit.visual.colors import NUM_COLORS, class_colors
from detrkit.visual.drawing import beside
from detrkit.visual.page import Picture
from detrkit.visual.text import printable, shortened

PICTURES = 12
SIDE = 420
"""Longer side of each of the three, pixels."""

_WRONG = (230, 30, 30)
_LEAST_NAMED = 0.02  # of the image, for a segment's name to be written on it


def draw_worst(
    matches: SegmentMatches, read_image: Callable[[int], np.ndarray | None], file_names: Sequence[str]
) -> tuple[Picture, ...]:
    """Draw the images with the lowest PQ, worst first.

    Args:
        matches: Segments.
        read_image: Gives the image of a row of the truth, uint8 ``[H, W, 3]``, or None.
        file_names: File name of each such row.
    """
    quality = matches.quality()
    order = np.argsort(quality)[: np.isfinite(quality).sum()]
    pictures: list[Picture] = []
    for place in order.tolist():
        row = int(matches.rows[place])
        image = read_image(row) if len(pictures) < PICTURES else None
        if image is not None:
            caption = (
                f"PQ {100 * quality[place]:.1f}: {_in_words(matches, row)} · {shortened(file_names[row], 40)}"
            )
            pictures.append(Picture.of(_draw(matches, row, image), caption, 3 * SIDE + 16))
    return tuple(pictures)


def _draw(matches: SegmentMatches, row: int, image: np.ndarray) -> np.ndarray:
    truth, (objects, found) = matches.truth, _of_image(matches, row)
    encoded = as_rle(matches.rle[found], truth.sizes_hw[[row] * len(found)])
    annotated = _paint(
        image,
        truth.class_map.names,
        [truth.rle[i] for i in objects],
        truth.class_ids[objects],
        matches.object_loss[objects] > FOUND,
    )
    seen = _paint(
        image, truth.class_map.names, encoded, matches.class_ids[found], matches.found_loss[found] > FOUND
    )
    plain = Image.fromarray(image)
    plain.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return beside([np.asarray(plain), annotated, seen], 8)


def _paint(
    image: np.ndarray,
    names: Sequence[str],
    masks: Sequence[dict[str, Any]],
    class_ids: np.ndarray,
    wrong: np.ndarray,
) -> np.ndarray:
    """Return the image, made smaller, with segments in the colours of their classes, wrong ones edged in red."""
    small = Image.fromarray(image)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    painted = np.asarray(small).astype(np.float32)
    named = []
    for encoded, class_id, is_wrong in zip(masks, class_ids.tolist(), wrong.tolist(), strict=True):
        mask = np.asarray(Image.fromarray(rle_masks.decode(encoded) * 255).resize(small.size)) > 127
        inside = mask.copy()  # without its edge
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            inside &= np.roll(inside, step, axis)
        painted[mask] = 0.4 * painted[mask] + 0.6 * np.array(class_colors()[class_id % NUM_COLORS])
        painted[mask & ~inside] = _WRONG if is_wrong else (255, 255, 255)
        if mask.mean() > _LEAST_NAMED:
            rows, columns = np.nonzero(mask)
            place = int(np.abs(rows - rows.mean()).argmin())  # a row of its own, near its centre
            at = (float(np.median(columns[rows == rows[place]])), float(rows[place]))
            named.append((at, shortened(printable(names[class_id]), 20)))
    canvas = Image.fromarray(painted.astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for at, name in named:
        pen.text(at, name, "white", anchor="mm", font_size=12, stroke_width=1, stroke_fill="black")
    return np.asarray(canvas)


def _in_words(matches: SegmentMatches, row: int) -> str:
    objects, found = _of_image(matches, row)
    kinds = Counter(LOSSES[code] for code in matches.object_loss[objects].tolist() if code > FOUND)
    kinds += Counter(LOSSES[code] for code in matches.found_loss[found].tolist() if code == LOSSES.index("false"))
    lost = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    right = int((matches.found_loss[found] == FOUND).sum())
    count = int((matches.object_loss[objects] >= FOUND).sum())
    return f"{right} of {counted(count, 'segment')} found{f', {lost}' if lost else ''}"


def _of_image(matches: SegmentMatches, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of annotated and of found segments of an image."""
    return np.flatnonzero(matches.truth.image_rows == row), np.flatnonzero(matches.image_rows == row)
