"""Readers of a split of a data set, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from detrkit.data.faults import Findings, ReadReport
from detrkit.data.formats import FORMATS, SplitFiles
from detrkit.data.index import CocoIndex, missing_images
from detrkit.data.repair import account, build_index
from detrkit.data.table import AnnotationTable
from detrkit.errors import DataError, ImageError

OnBadImage = Literal["skip", "error", "keep"]


def load_table(files: SplitFiles) -> AnnotationTable:
    """Load the annotation files of a split, nothing repaired.

    Raises:
        AnnotationError: They cannot be read at all.
        DataError: There is nothing in them.
    """
    return FORMATS[files.format].read(files)


def read_told(files: SplitFiles, say: Callable[[str], None]) -> CocoIndex:
    """Read a split, and say what was repaired."""
    index, report = read_split_files(files)
    for line in report.lines():
        say(line)
    return index


def read_split_files(files: SplitFiles, on_bad_image: OnBadImage = "skip") -> tuple[CocoIndex, ReadReport]:
    """Read a split and check that its image files exist.

    Args:
        files: From :func:`detrkit.data.formats.find_split`.
        on_bad_image: skip: listed images without a file are left out and reported; error: they are an error; keep:
            files are not looked for, since nobody needs their pixels.

    Raises:
        AnnotationError: The annotations cannot be read, contradict themselves, or name a file outside the image
            folder.
        DataError: Nothing is left to work with.
        ImageError: A listed image file does not exist and ``on_bad_image`` is error.
    """
    table, images = load_table(files), files.images
    index, report = build_index(table, images)
    if on_bad_image == "keep":
        return index, report
    try:
        missing = missing_images(index, images)
    except DataError as error:
        raise type(error)(f"{table.source}: {error}") from error
    if len(missing) == len(index):
        raise DataError(
            f"{table.source}: none of its {len(index)} image files exists, for instance {index.file_name(0)!r}; "
            f"looked in {images}; set data.train_images or data.val_images to the folder that holds them"
        )
    found = Findings(report.source, report.findings)
    for row in missing.tolist():
        rows = index.annotation_rows(row)
        found.add("missing_image", index.file_name(row), objects=rows.stop - rows.start)
    if len(missing) and on_bad_image == "error":
        raise ImageError(
            f"{table.source}: {len(missing)} of {len(index)} image files do not exist in {images}, for instance "
            f"{index.file_name(int(missing[0]))!r}; restore them or remove their entries"
        )
    if len(missing):
        index = index.select(np.setdiff1d(np.arange(len(index)), missing))
    return index, account(table, index, found)


def read_coco(annotations: Path, images: Path, on_bad_image: OnBadImage = "skip") -> tuple[CocoIndex, ReadReport]:
    """Read a COCO JSON file whose file names are relative to ``images``; see :func:`read_split_files`."""
    return read_split_files(SplitFiles(Path(annotations), Path(images), "COCO JSON", "named"), on_bad_image)
