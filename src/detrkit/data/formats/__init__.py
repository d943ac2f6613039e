"""Finding the splits of a data set, whatever its layout, and the table of formats."""

from __future__ import annotations

from detrkit.config import Layout
from detrkit.data.formats.base import SplitFiles, canonical_split
from detrkit.data.formats.coco.find import find_image_folder
from detrkit.data.formats.find import find_split, find_splits, list_splits
from detrkit.data.formats.table import FORMATS, WRITTEN_FORMATS, BoxFormat, Format

__all__ = [
    "FORMATS",
    "WRITTEN_FORMATS",
    "BoxFormat",
    "Format",
    "Layout",
    "SplitFiles",
    "canonical_split",
    "find_image_folder",
    "find_split",
    "find_splits",
    "list_splits",
]
