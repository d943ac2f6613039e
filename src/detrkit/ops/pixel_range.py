"""Gray values of 16 and 32 bits as the 8 bits that models take: which range of them becomes black to white.

A thermal camera or a 12-bit X-ray uses a small part of 65,536 values: scaled from the whole, a few gray levels are
left of it. Where the files cannot say which part it is, ``data.pixel_range`` does.

Shapes: H x W height and width in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from detrkit.config import PixelRange

FULL: PixelRange = "full"
WIDE_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
PERCENTILES = (0.1, 99.9)
"""Of the values of an image, from which to which ``percentile`` goes: single hot or dead pixels do not count."""
FEW_LEVELS = 64
"""Gray levels of 256 below which next to nothing is left of an image that has at least twice as many values."""
_NO_DATA_TAG = 42113  # of GDAL, as text
_NO_DATA_VALUES = (-9999.0, -32768.0, float(np.finfo(np.float32).min))
_MOST_COUNTED = 1 << 20


class WideImage(NamedTuple):
    """Values of an image of one channel and more than 8 bits.

    Args:
        values: Values as stored, ``[H, W]``.
        is_valid: Whether a pixel holds a finite value that does not stand for no data, bool ``[H, W]``.
        is_16_bit: Whether the file's kind says that values go from 0 to 65535.
        no_data: Value that stands for no data, where the image has it.
    """

    values: np.ndarray
    is_valid: np.ndarray
    is_16_bit: bool
    no_data: float | None = None


def wide_values(image: Image.Image) -> WideImage:
    """Return the values of a loaded Pillow image of one of :data:`WIDE_MODES`."""
    values = np.asarray(image)
    is_16_bit = image.mode.startswith("I;16")
    is_valid = np.isfinite(values)
    tagged = str(getattr(image, "tag_v2", {}).get(_NO_DATA_TAG, "")).strip(" \0")
    try:
        candidates: tuple[float, ...] = (float(tagged),)
    except ValueError:
        candidates = () if is_16_bit else _NO_DATA_VALUES
    no_data = None
    for value in candidates:
        is_none = values == value
        if is_none.any() and not is_none.all():
            is_valid, no_data = is_valid & ~is_none, value
    return WideImage(values, is_valid, is_16_bit, no_data)


def range_of(wide: WideImage, pixel_range: PixelRange) -> tuple[float, float]:
    """Return the values that become black and white."""
    if isinstance(pixel_range, tuple):
        return pixel_range
    if wide.is_16_bit and pixel_range == "full":
        return 0.0, 65535.0
    valid = wide.values[wide.is_valid]
    if not len(valid):
        return 0.0, 1.0
    if pixel_range != "full":  # data: where nobody has measured the data set, each image for itself
        low, high = np.percentile(valid, PERCENTILES).tolist()
        return low, high
    # the range of 32-bit values is guessed: the file does not say it
    low, high = float(valid.min()), float(valid.max())
    if low >= 0 and high <= 1 and wide.values.dtype.kind == "f":
        return 0.0, 1.0
    return (0.0, 255.0) if low >= 0 and high <= 255 else (low, high)


def to_uint8(wide: WideImage, pixel_range: PixelRange) -> np.ndarray:
    """Return 8-bit values, uint8 ``[H, W]``; what is no value or stands for no data is black."""
    low, high = range_of(wide, pixel_range)
    dtype = np.float32 if wide.is_16_bit else np.float64
    numbers: np.ndarray = np.where(wide.is_valid, wide.values.astype(dtype), dtype(low))
    scaled = (numbers - low) * (255 / (high - low)) if high > low else np.zeros_like(numbers)
    rounded: np.ndarray = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return rounded


def narrow_words(wide: WideImage, pixel_range: PixelRange) -> str:
    """Say how few gray levels are left of an image, if that is next to nothing of it; empty otherwise."""
    step = max(1, wide.values.size // _MOST_COUNTED)
    sample = wide._replace(values=wide.values.ravel()[::step], is_valid=wide.is_valid.ravel()[::step])
    values = sample.values[sample.is_valid]
    held, left = len(np.unique(values)), len(np.unique(to_uint8(sample, pixel_range)[sample.is_valid]))
    if left >= FEW_LEVELS or held < 2 * left:
        return ""
    return f"{left} gray levels are left of {held} values from {values.min():g} to {values.max():g}"
