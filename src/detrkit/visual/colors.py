"""Colours of classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

NUM_COLORS = 24
MOST_LUMINANCE = 0.25  # of 1; white text on it has a contrast of 3.5


def class_colors() -> Sequence[tuple[int, int, int]]:
    """Return red, green and blue by class id, dark enough for white text; ids in a row are far apart in hue."""
    golden = 0.618034
    return [_readable_color(i * golden % 1, (0.45, 0.35, 0.55)[i % 3]) for i in range(NUM_COLORS)]


def _readable_color(hue: float, lightness: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    shade = 255 * min(1.0, (MOST_LUMINANCE / luminance) ** (1 / 2.2))
    return round(shade * red), round(shade * green), round(shade * blue)
