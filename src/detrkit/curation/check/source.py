"""A split as the checks see it: its table, its files, and what later checks learn from earlier ones.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from detrkit.classes import SizeHW
from detrkit.data.formats import SplitFiles
from detrkit.data.formats.coco.read import load_json
from detrkit.data.table import AnnotationTable


class ImageFacts(NamedTuple):
    """What the header of an image file says, and whether it decodes.

    Args:
        format: As Pillow names it; empty if it is not known.
        mode: Pillow's mode.
        stored_hw: Pixels as stored, before EXIF.
        orientation: EXIF orientation, 1 if there is none.
        frames: Of an animation, else 1.
        fault: Kind of finding if it cannot be used, else empty.
        detail: What was wrong, in words.
    """

    format: str = ""
    mode: str = ""
    stored_hw: SizeHW = (0, 0)
    orientation: int = 1
    frames: int = 1
    fault: str = ""
    detail: str = ""

    @property
    def upright_hw(self) -> SizeHW:
        """Pixels of the upright image."""
        return self.stored_hw[::-1] if self.orientation in (5, 6, 7, 8) else self.stored_hw


@dataclasses.dataclass
class SplitData:
    """One split; the fields after ``table`` are filled by the checks, one after the other.

    Args:
        name: Of the split.
        files: Where it lies.
        table: What its annotations say.
        image_rows: Image row of each annotation, -1 if unknown, ``[N]``.
        class_rows: Category row of each annotation, -1 if unknown, ``[N]``.
        resolved: File name that exists for each image, relative to the image folder; None if there is none.
        facts: Of each image file; None where it was not opened.
        limits_hw: Greatest extent that boxes may have, int64 ``[I, 2]``; 0 if no size is known.
        repaired_xywh: Boxes as ``--fix`` writes them, float64 ``[N, 4]``; NaN for those left out.
        box_fault: Kind of the first fault of each box, object ``[N]``; empty if sound.
    """

    name: str
    files: SplitFiles
    table: AnnotationTable
    image_rows: np.ndarray = dataclasses.field(init=False)
    class_rows: np.ndarray = dataclasses.field(init=False)
    resolved: list[str | None] = dataclasses.field(init=False)
    facts: list[ImageFacts | None] = dataclasses.field(init=False)
    limits_hw: np.ndarray = dataclasses.field(init=False)
    repaired_xywh: np.ndarray = dataclasses.field(init=False)
    box_fault: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        table = self.table
        self.image_rows, self.class_rows = table.image_rows(), table.class_rows()
        self.resolved = [None] * len(table.image_ids)
        self.facts = [None] * len(table.image_ids)
        self.limits_hw = table.sizes_hw.astype(np.int64)
        self.repaired_xywh = table.boxes_xywh.copy()
        self.box_fault = np.full(len(table.annotation_ids), "", dtype=object)

    def place(self, row: int) -> str:
        """An annotation in words, with its image."""
        image = int(self.image_rows[row])
        where = self.table.place(row, image)
        return where if image < 0 or self.table.label_files else f"{where} of {self.table.file_names[image]}"

    def places(self, rows: np.ndarray) -> list[tuple[int, int]]:
        """Image and annotation row of annotations."""
        return list(zip(self.image_rows[rows].tolist(), rows.tolist(), strict=True))

    def has_faulty_file(self, row: int) -> bool:
        """Whether an image has no file that could be used."""
        facts = self.facts[row]
        return self.resolved[row] is None or bool(facts is not None and facts.fault)


class _WithMask(msgspec.Struct, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Content(msgspec.Struct, gc=False):
    annotations: list[_WithMask]


def read_masks(split: SplitData) -> Sequence[msgspec.Raw] | None:
    """The ``segmentation`` of every annotation of a COCO JSON file, not parsed yet; None if there are none."""
    if split.files.format != "coco":
        return None
    content = split.table.source.read_bytes()
    if b'"segmentation"' not in content:
        return None
    try:
        entries = msgspec.json.decode(content, type=_Content).annotations
    except msgspec.MsgspecError:  # odd files, such as with NaN, go the slow way
        listed = load_json(split.table.source)["annotations"]
        return [msgspec.Raw(msgspec.json.encode(entry.get("segmentation"))) for entry in listed]
    return [entry.segmentation for entry in entries]


def boxes_text(boxes: np.ndarray) -> str:
    """Four numbers in words."""
    return "[" + ", ".join(f"{value:g}" for value in boxes) + "]"
