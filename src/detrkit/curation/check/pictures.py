"""Tests that tell a copy of a picture from another picture of the same scene.

A perceptual hash sees the frame as a whole: pictures of one fixed camera have nearly the same hash although
other things are in them. What tells them apart are the objects that people marked, and where the pixels differ:
a copy that was compressed, resized, brightened or trimmed differs a little everywhere, another picture of the
scene differs much in a few places and hardly elsewhere.

On 70 real images 90 to 100 % of each of nine kinds of copies pass the test of pixels, and 93 % of 998 pairs of
chess positions on one board do not; most of the others are kept apart by their objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter  # type: ignore[attr-defined]

from detrkit.errors import ImageError
from detrkit.ops.images import decode_image

SIDE = 48
LOCAL_MOST = 15.0
LOCAL_FACTOR = 8.0
"""The greatest local difference of a copy is at most ``LOCAL_MOST`` gray levels and ``LOCAL_FACTOR`` times that of
19 of 20 places."""
_PLACES = (0.999, 0.95)
MOVED = 0.03
"""Share of the image's side by which trimming and video compression move an object."""


class Thumbnail(NamedTuple):
    """A small gray picture, ``[SIDE, SIDE]``, with the least and greatest value around each pixel."""

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def read_thumbnail(path: Path) -> Thumbnail | None:
    """Read the thumbnail of an image file; None if it cannot be read."""
    try:
        pixels = decode_image(path).permute(1, 2, 0).numpy()
    except ImageError:
        return None
    gray = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(gray, dtype=np.float32)
    return Thumbnail(values, minimum_filter(values, 3), maximum_filter(values, 3))


def is_copy(one: Thumbnail, two: Thumbnail) -> bool:
    """Return whether two pictures of nearly equal hashes are copies of one, brightness and contrast apart."""
    centred = two.values - two.values.mean()
    gain = float(((one.values - one.values.mean()) * centred).sum() / max(float((centred**2).sum()), 1e-6))
    gain = min(max(gain, 0.5), 2.0)
    shift = float(one.values.mean() - gain * two.values.mean())
    values, low, high = (gain * part + shift for part in two)
    # A pixel counts only where none of its neighbours in the other picture has its value: trimming moves edges.
    apart = np.maximum.reduce([one.values - high, low - one.values, values - one.high, one.low - values])
    greatest, common = np.quantile(np.maximum(apart, 0), _PLACES)
    return bool(greatest < LOCAL_MOST + LOCAL_FACTOR * common)


class Objects(NamedTuple):
    """Objects that people marked in an image: boxes (centre and size, 0 to 1) ``[n, 4]`` and names ``[n]``."""

    boxes_cxcywh: np.ndarray
    names: np.ndarray


def agreement(one: Objects, two: Objects) -> float | None:
    """Return the share of the objects of two images that have a counterpart; None if an image has none.

    Counterparts have the same class, about the same place, and not more than twice the size: a picture that was
    trimmed by 2 % moves its objects by as much.
    """
    if not len(one.names) or not len(two.names):
        return None
    first, second = one.boxes_cxcywh[:, None], two.boxes_cxcywh[None]
    reach = np.maximum(MOVED, np.minimum(first[..., 2:], second[..., 2:]) / 4)
    near = (np.abs(first[..., :2] - second[..., :2]) <= reach).all(axis=-1)
    alike = (np.maximum(first, second) <= 2 * np.minimum(first, second) + MOVED)[..., 2:].all(axis=-1)
    match = near & alike & (one.names[:, None] == two.names[None])
    return float(match.any(axis=1).sum() + match.any(axis=0).sum()) / (len(one.names) + len(two.names))
