"""Finding the splits of a data set, whatever its layout."""

from __future__ import annotations

from detrkit.data.formats.base import Format, Layout, SplitFiles, canonical_split
from detrkit.data.formats.coco.find import find_image_folder
from detrkit.data.formats.find import find_split, find_splits, list_splits

__all__ = [
    "Format",
    "Layout",
    "SplitFiles",
    "canonical_split",
    "find_image_folder",
    "find_split",
    "find_splits",
    "list_splits",
]
