"""A split as the checks see it: its table, its files, and what later checks learn from earlier ones.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrkit.classes import SizeHW
from detrkit.data.faults import MAX_EXAMPLES, Findings, Location
from detrkit.data.formats import SplitFiles
from detrkit.data.table import AnnotationTable


class ImageFacts(NamedTuple):
    """The header of an image file, and whether it decodes.

    Args:
        format: Format as Pillow names it; empty if it is not known.
        mode: Pillow's mode.
        stored_hw: Pixels as stored, before EXIF.
        orientation: EXIF orientation, 1 if there is none.
        frames: Frames of an animation, else 1.
        depth: Values of an image of 16 or 32 bits, in words.
        narrow: How few gray levels are left of it, in words; empty if enough are.
        fault: Kind of fault if it cannot be used, else empty.
        detail: Description of the fault.
    """

    format: str = ""
    mode: str = ""
    stored_hw: SizeHW = (0, 0)
    orientation: int = 1
    frames: int = 1
    depth: str = ""
    narrow: str = ""
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
        name: Name of the split.
        files: Files that it lies in.
        table: Its annotations as written.
        image_rows: Image row of each annotation, -1 if unknown, ``[N]``.
        class_rows: Category row of each annotation, -1 if unknown, ``[N]``.
        resolved: File name that exists for each image, relative to the image folder; None if there is none.
        facts: Facts of each image file; None where it was not opened.
        is_turned: Images whose boxes were drawn on the picture as stored, before EXIF turns it, bool ``[I]``.
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
    is_turned: np.ndarray = dataclasses.field(init=False)
    limits_hw: np.ndarray = dataclasses.field(init=False)
    repaired_xywh: np.ndarray = dataclasses.field(init=False)
    box_fault: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        table = self.table
        self.image_rows, self.class_rows = table.image_rows(), table.class_rows()
        self.resolved = [None] * len(table.image_ids)
        self.facts = [None] * len(table.image_ids)
        self.is_turned = np.zeros(len(table.image_ids), dtype=bool)
        self.limits_hw = table.sizes_hw.astype(np.int64)
        self.repaired_xywh = table.boxes_xywh.copy()
        self.box_fault = np.full(len(table.annotation_ids), "", dtype=object)

    def where(self, row: int) -> str:
        """Describe an annotation with its image, for messages."""
        image = int(self.image_rows[row])
        where = self.table.place(row, image)
        return where if image < 0 or self.table.label_files else f"{where} of {self.table.file_names[image]}"

    def report(self, found: Findings, kind: str, rows: np.ndarray, words: Callable[[int], str]) -> None:
        """Count a fault of some annotations; ``words`` describes one by its row, behind where it is."""
        for at, row in enumerate(rows.tolist()):
            example = f"{self.where(row)}{words(row)}" if at < MAX_EXAMPLES else ""
            found.add(kind, example, Location(self.name, int(self.image_rows[row]), row))

    def report_images(self, found: Findings, kind: str, rows: np.ndarray, words: Callable[[int], str]) -> None:
        """Count a fault of some images; ``words`` describes one by its row."""
        for at, row in enumerate(rows.tolist()):
            found.add(kind, words(row) if at < MAX_EXAMPLES else "", Location(self.name, row))

    def path(self, row: int) -> Path | None:
        """Return the file of an image, if there is one."""
        name = self.resolved[row]
        return None if name is None else self.files.images / name

    def has_faulty_file(self, row: int) -> bool:
        """Return whether an image has no file that could be used."""
        facts = self.facts[row]
        return self.resolved[row] is None or bool(facts is not None and facts.fault)

    def class_counts(self) -> Counter[str]:
        """Count the annotations of each class name; names with none are left out."""
        counts = np.bincount(self.class_rows[self.class_rows >= 0], minlength=len(self.table.category_names))
        names: Counter[str] = Counter()
        for name, count in zip(self.table.category_names, counts.tolist(), strict=True):
            if count:
                names[name] += count
        return names


def repeated_rows(values: np.ndarray) -> np.ndarray:
    """Return the rows whose value occurred before, int64."""
    is_first = np.zeros(len(values), dtype=bool)
    is_first[np.unique(values, return_index=True)[1]] = True
    return np.flatnonzero(~is_first)


def boxes_text(boxes: np.ndarray) -> str:
    """Write four numbers for a message."""
    return "[" + ", ".join(f"{value:g}" for value in boxes) + "]"
