"""Polygons around the pixels of a mask, for formats that know no runs, and one polygon of several.

A polygon is float64 ``[points, 2]`` as (x, y) in pixels; that of pixel 0 lies between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.spatial.distance import cdist

from detrkit.masks import MaskPatch


def mask_outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outlines of a mask, bool ``[H, W]``: of each part, then of its holes, the other way round.

    They run along the sides of pixels and cut their corners; drawn again, they give the same pixels.
    """
    from contourpy import FillType, contour_generator

    top, left, pixels = MaskPatch.of_mask(mask)
    generator = contour_generator(z=np.pad(pixels, 1).astype(np.float64), fill_type=FillType.OuterOffset)
    parts: Iterable[tuple[np.ndarray, np.ndarray]] = zip(*generator.filled(0.5, 2.0), strict=True)
    closed = [ring for points, offsets in parts for ring in np.split(points, offsets[1:-1])]
    return [_without_straight(ring[:-1] - 0.5 + (left, top)) for ring in closed]


def join_polygons(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Join polygons to one by lines there and back between their nearest points, which enclose nothing."""
    whole = parts[0]
    for part in parts[1:]:
        at, start = np.unravel_index(cdist(whole, part).argmin(), (len(whole), len(part)))
        around = np.roll(part, -int(start), axis=0)
        whole = np.concatenate([whole[: at + 1], around, around[:1], whole[at:]])
    return whole


def _without_straight(ring: np.ndarray) -> np.ndarray:
    """Leave out the points of a ring at which it goes straight on."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns: np.ndarray = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return turns
