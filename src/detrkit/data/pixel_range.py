"""The range of gray values of a data set of 16 or 32 bits; see :mod:`detrkit.ops.pixel_range`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from detrkit.config import PixelRange
from detrkit.data.index import CocoIndex, check_inside
from detrkit.errors import DataError, ImageError
from detrkit.ops.images import read_wide
from detrkit.ops.pixel_range import FULL, range_of

MEASURED = 500
"""Images of which the range of a data set is taken, evenly over it."""


def some_files(index: CocoIndex, images: Path, count: int) -> list[Path]:
    """Return the files of some images, evenly over a split."""
    rows = np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(int))
    names = [index.file_name(row) for row in rows.tolist()]
    for name in names:
        check_inside(name, images)
    return [images / name for name in names]


def measured_range(pixel_range: PixelRange, index: CocoIndex, images: Path) -> PixelRange:
    """Return a pixel range, measured where it is that of the data set; full if no image has more than 8 bits.

    Measured are the values between which nearly all pixels of nearly all images lie; a few odd images count not.

    Raises:
        DataError: All pixels have one value.
    """
    if pixel_range != "data":
        return pixel_range
    ranges = []
    for file in some_files(index, images, MEASURED):
        try:
            wide = read_wide(file)
        except ImageError:  # told of by what needs the picture
            continue
        if wide is not None and wide.is_valid.any():
            ranges.append(range_of(wide, "percentile"))
    if not ranges:
        return FULL
    low, high = np.percentile([one for one, _ in ranges], 1), np.percentile([one for _, one in ranges], 99)
    if not low < high:
        raise DataError(f"data.pixel_range=data: all pixels of {images} have the value {low:g}; set [LOW,HIGH]")
    return float(low), float(high)
