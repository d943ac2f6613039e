"""Resizing of images as torch does it, to the bit, in NumPy.

Pillow's own resize differs from torch's by one step of 255 here and there: it keeps more digits of its weights.

Shapes: H x W height and width, K taps of an output pixel.
"""

from __future__ import annotations

import functools

import numpy as np

from detrkit.classes import SizeHW

_MOST_PRECISION = 22
_INT16 = 1 << 15


def resize_pixels(image: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """Resize uint8 ``[H, W, 3]`` bilinearly with antialiasing, as :func:`detrkit.preprocess.resize_image` does.

    First along the rows, then along the columns, each rounded to uint8; weights are 16-bit integers, as in torch's
    ``upsample_bilinear2d_aa``.
    """
    height, width = image.shape[:2]
    pixels = np.ascontiguousarray(image)
    if size_hw[1] != width:
        first, weights, precision = _taps(width, size_hw[1])
        pixels = _weighted_sum(pixels, 1, first, weights, precision)
    if size_hw[0] != height:
        first, weights, precision = _taps(height, size_hw[0])
        pixels = _weighted_sum(pixels, 0, first, weights, precision)
    return pixels


def _weighted_sum(
    pixels: np.ndarray, axis: int, first: np.ndarray, weights: np.ndarray, precision: int
) -> np.ndarray:
    """Sum the taps of every output pixel along an axis, rounded."""
    last = pixels.shape[axis] - 1
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    total: np.ndarray | None = None
    for tap in range(weights.shape[1]):
        weight = weights[:, tap].reshape(shape)
        if tap and not weight.any():
            continue
        part = np.take(pixels, np.minimum(first + tap, last), axis=axis) * weight
        total = part + (1 << (precision - 1)) if total is None else np.add(total, part, out=total)
    assert total is not None
    total >>= precision
    return np.clip(total, 0, 255, out=total).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _taps(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the first input pixel of each output pixel, the weights ``[wanted, K]`` int32, and their scale."""
    scale = size / wanted
    support = scale if scale >= 1 else 1.0
    most = int(np.ceil(np.float32(support))) * 2 + 1
    centers = scale * (np.arange(wanted) + 0.5)
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    count = np.clip(np.minimum((centers + support + 0.5).astype(np.int64), size) - first, 0, most)
    places = first[:, None] + np.arange(most)
    distances = np.abs((places - centers[:, None] + 0.5) * (1 / scale if scale >= 1 else 1.0))
    weights = np.where(distances < 1, 1 - distances, 0.0)
    weights[np.arange(most) >= count[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    # as many binary digits as the greatest weight leaves in 16 bits
    precision = 0
    while precision < _MOST_PRECISION and int(0.5 + weights.max() * (1 << (precision + 1))) < _INT16:
        precision += 1
    return first, (weights * (1 << precision) + 0.5).astype(np.int32), precision
