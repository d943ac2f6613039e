"""Readers of a split of a data set, whatever its format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from detrkit.data.box_formats import box_format_of, from_xywh, looks_in_pixels, looks_normalised
from detrkit.data.faults import MOST_LOST, Findings, ReadReport
from detrkit.data.formats import FORMATS, SplitFiles
from detrkit.data.formats.foreign import describe_foreign
from detrkit.data.index import CocoIndex, check_inside
from detrkit.data.names import find_names
from detrkit.data.pixel_range import some_files
from detrkit.data.repair import account, build_index
from detrkit.data.table import AnnotationTable
from detrkit.errors import AnnotationError, DataError, ImageError
from detrkit.ops.images import narrow_range_lines
from detrkit.ops.pixel_range import FULL

OnBadImage = Literal["skip", "error", "keep"]


def load_table(files: SplitFiles, masks: bool = False) -> AnnotationTable:
    """Load the annotation files of a split, with masks or without, nothing repaired.

    Raises:
        AnnotationError: They cannot be read at all.
        DataError: There is nothing in them.
    """
    try:
        return FORMATS[files.format].read(files, masks)
    except AnnotationError as error:
        foreign = describe_foreign(files.annotations) if files.annotations.suffix == ".json" else ""
        raise AnnotationError("; ".join(filter(None, (str(error), foreign)))) from error


def read_told(
    files: SplitFiles, say: Callable[[str], None], *, masks: bool = False
) -> tuple[CocoIndex, ReadReport]:
    """Read a split, with masks or without, and say what was repaired."""
    index, report = read_split_files(files, masks=masks)
    narrow = narrow_range_lines(some_files(index, files.images, 3), FULL)
    for line in [*report.lines(), *narrow]:
        say(line)
    return index, report


def read_split_files(
    files: SplitFiles, on_bad_image: OnBadImage = "skip", *, may_lose: bool = False, masks: bool = False
) -> tuple[CocoIndex, ReadReport]:
    """Read a split and check that its image files exist.

    Args:
        files: From :func:`detrkit.data.formats.find_split`.
        on_bad_image: skip: listed images without a file are left out and reported; error: they are an error; keep:
            files are not looked for, since nobody needs their pixels.
        may_lose: True: images without any object are enough, though the files hold some.
        masks: Read masks too; those of the index are None where the split has none. Of COCO panoptic, stuff
            becomes objects as well.

    Raises:
        AnnotationError: The annotations cannot be read, contradict themselves, or name a file outside the image
            folder.
        DataError: Nothing is left to work with.
        ImageError: A listed image file does not exist and ``on_bad_image`` is error.
    """
    table, images = load_table(files, masks), files.images
    index, report = build_index(table, images) if on_bad_image == "keep" else index_files(table, images)
    ledger, missing = report.ledger, report.count("missing_image")
    example = next(iter(report.examples("missing_image")), "")
    if not len(index):
        raise DataError(
            f"{table.source}: none of its {missing} image files exists, for instance {example}; "
            f"looked in {images}; name the folder that holds them: --image-folder DIR (in train: "
            "--set data.train_images=DIR --set data.val_images=DIR)"
        )
    if missing and on_bad_image == "error":
        raise ImageError(
            f"{table.source}: {missing} of {missing + len(index)} image files do not exist in {images}, "
            f"for instance {example}; restore them or remove their entries"
        )
    kind = _other_box_format(index, files)
    if kind:
        found = Findings(report.source, report.findings)
        boxes = index.boxes_xyxy if index.written is None else index.written.boxes_xywh
        found.add(kind, f"the first is {boxes[0].round(3).tolist()}", count=len(boxes))
        report = dataclasses.replace(report, findings=found.build())
        if not may_lose:
            raise DataError(
                f"{table.source}: its boxes would be taken for others; repair a copy (detrkit data check DATA "
                f"--fix DIR); to train on them all the same: --set data.on_lost_objects=warn:\n{report}"
            )
    is_empty = ledger.objects_found and not ledger.objects_read
    if is_empty and "missing_image" not in ledger.objects_left_out and not may_lose:
        raise DataError(
            f"{table.source}: none of its {ledger.objects_found} annotations can be used; correct the file (to "
            f"train on the images all the same: --set data.on_lost_objects=warn):\n{report}"
        )
    return index, report


def _other_box_format(index: CocoIndex, files: SplitFiles) -> str:
    """Return the fault of a split whose boxes are written another way than its format has it; else empty."""
    written, native = index.written, FORMATS[files.format].box_format
    if written is None:
        return ""
    extent = index.sizes_hw[written.image_rows][:, [1, 0, 1, 0]].astype(np.float64)
    numbers = from_xywh(written.boxes_xywh, native)
    if files.format != "yolo" and len(numbers) and looks_normalised(numbers, extent).mean() > MOST_LOST:
        return "box_normalised"
    if (
        files.format == "yolo"
        and len(numbers)
        and looks_in_pixels(numbers, np.maximum(extent, 1)).mean() > MOST_LOST
    ):
        return "box_in_pixels"
    box_format = box_format_of(numbers, extent, native)
    return "" if box_format == native else f"box_{box_format}"


def index_files(table: AnnotationTable, images: Path) -> tuple[CocoIndex, ReadReport]:
    """Index the images whose files exist; the others are left out with their objects.

    Raises:
        AnnotationError: As :func:`detrkit.data.repair.build_index`.
    """
    table, missing = _with_file_names(table, images)
    index, report = build_index(table, images)
    found = Findings(report.source, report.findings)
    for row, words in missing.items():
        rows = index.annotation_rows(row)
        found.add("missing_image", words, objects=rows.stop - rows.start)
    if missing:
        index = index.select(np.setdiff1d(np.arange(len(index)), list(missing)))
    return index, account(table, index, found)


def _with_file_names(table: AnnotationTable, images: Path) -> tuple[AnnotationTable, dict[int, str]]:
    """Give images the names of their files, and return what is said of those that have none, by row.

    Raises:
        AnnotationError: A name leads out of ``images``, and no rule to a file in it.
    """
    names = find_names(table.file_names, images)
    found, missing = Findings(table.report.source, table.report.findings), {}
    for row, (listed, file) in enumerate(zip(table.file_names, names.files, strict=True)):
        fault = names.fault(row, listed)
        if file is None:
            try:
                check_inside(listed, images)
            except AnnotationError as error:
                raise AnnotationError(f"{table.source}: {error}") from error
            is_link = (images / listed).is_symlink()
            missing[row] = f"{listed}: a link to a file that is not there" if is_link else names.words(row, listed)
        elif fault:
            found.add(fault, names.words(row, listed))
    files = [file or listed for listed, file in zip(table.file_names, names.files, strict=True)]
    return dataclasses.replace(table, file_names=files, report=found.report()), missing


def read_coco(annotations: Path, images: Path, on_bad_image: OnBadImage = "skip") -> tuple[CocoIndex, ReadReport]:
    """Read a COCO JSON file whose file names are relative to ``images``; see :func:`read_split_files`."""
    return read_split_files(SplitFiles(Path(annotations), Path(images), "COCO JSON", "named"), on_bad_image)
