"""Resizing of images as torch does it, to the bit, in NumPy.

Pillow's own resize differs from torch's by one step of 255 here and there: it keeps more digits of its weights.

Shapes: H x W height and width, K taps of an output pixel.
"""

from __future__ import annotations

import functools

import numpy as np

from detrkit.classes import SizeHW

_MOST_PRECISION = 22
_EXACT_PRECISION = 16
"""Binary digits of weights whose sum with pixels of 8 float32 holds; 0.5 and the weights' own rounding fit too."""
_INT16 = 1 << 15
_BAND = 16  # output pixels of one product; more would multiply more zeros
_ROWS = 64


def resize_pixels(image: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """Resize uint8 ``[H, W, 3]`` bilinearly with antialiasing, as :func:`detrkit.preprocess.resize_image` does.

    First along the rows, then along the columns, each rounded to uint8; weights are 16-bit integers, as in torch's
    ``upsample_bilinear2d_aa``. Products are exact, in any order: in float32 as long as sums are below 2**24, which
    is until sizes shrink to about a fourth, and in float64 beyond that.
    """
    height, width = image.shape[:2]
    if size_hw == (height, width):
        return np.ascontiguousarray(image)
    # along the rows, some at a time, which the processor's caches hold
    rows = np.empty((3, height, size_hw[1]), dtype=np.float32)
    bands = [] if size_hw[1] == width else _bands(width, size_hw[1])
    exact = bands[0][2].dtype if bands else rows.dtype
    for start in range(0, height, _ROWS):
        part = image[start : start + _ROWS].transpose(2, 0, 1).astype(exact, order="C")
        if not bands:
            rows[:, start : start + _ROWS] = part
            continue
        done = np.empty((*part.shape[:2], size_hw[1]), dtype=exact)
        for outputs, inputs, weights in bands:
            np.matmul(part[:, :, inputs], weights.T, out=done[:, :, outputs])
        done += 0.5
        np.floor(done, out=rows[:, start : start + _ROWS])
    # along the columns; what is cut off the half is what rounding takes away
    resized = np.empty((*size_hw, 3), dtype=np.uint8)
    if size_hw[0] == height:
        resized[...] = rows.transpose(1, 2, 0)
        return resized
    for outputs, inputs, weights in _bands(height, size_hw[0]):
        part = weights @ rows[:, inputs]
        part += 0.5
        resized[outputs] = part.transpose(1, 2, 0)
    return resized


@functools.lru_cache(maxsize=64)
def _bands(size: int, wanted: int) -> list[tuple[slice, slice, np.ndarray]]:
    """Return runs of output pixels, the input pixels that they need, and the weights ``[outputs, inputs]``.

    The weights are multiples of a power of two, in a type in which their sums with pixels are exact.
    """
    first, weights, precision = _taps(size, wanted)
    exact = np.float32 if precision <= _EXACT_PRECISION else np.float64
    bands = []
    for start in range(0, wanted, _BAND):
        outputs = slice(start, min(start + _BAND, wanted))
        rows = np.arange(outputs.stop - start)
        inputs = slice(int(first[start]), min(int(first[outputs.stop - 1]) + weights.shape[1], size))
        band = np.zeros((len(rows), inputs.stop - inputs.start + weights.shape[1]), dtype=exact)
        for tap in range(weights.shape[1]):
            band[rows, first[outputs] - inputs.start + tap] = weights[outputs, tap] / (1 << precision)
        bands.append((outputs, inputs, np.ascontiguousarray(band[:, : inputs.stop - inputs.start])))
    return bands


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
