"""Colours of classes."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence

import numpy as np

NUM_COLORS = 24
MOST_LUMINANCE = 0.25  # of 1; white text on it has a contrast of 3.5


def class_colors() -> Sequence[tuple[int, int, int]]:
    """Return red, green and blue by class id, dark enough for white text; ids in a row are far apart in hue."""
    golden = 0.618034
    return [_readable_color(i * golden % 1, (0.45, 0.35, 0.55)[i % 3]) for i in range(NUM_COLORS)]


def tint_masks(image: np.ndarray, masks: Iterable[np.ndarray], class_ids: np.ndarray) -> np.ndarray:
    """Return a copy of the image with masks, bool ``[H, W]`` each, half transparent in their classes' colours."""
    tinted, colors = image.copy(), np.array(class_colors(), dtype=np.uint16)
    for mask, class_id in zip(masks, class_ids.tolist(), strict=True):
        tinted[mask] = (tinted[mask] + colors[class_id % len(colors)]) // 2
    return tinted


def _readable_color(hue: float, lightness: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    shade = 255 * min(1.0, (MOST_LUMINANCE / luminance) ** (1 / 2.2))
    return round(shade * red), round(shade * green), round(shade * blue)
