"""Contents of annotation files as columns, before anything is repaired.

Every format is read into an :class:`AnnotationTable`. :mod:`detrkit.data.repair` makes the index that training
and evaluation use of it; ``detrkit data check`` looks for faults in it.

Shapes: I images, N annotations of all of them, C categories.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from detrkit.data.faults import ReadReport
from detrkit.data.masks import ObjectMasks

IdTexts = Mapping[int, str]
"""The text that a file has for an id, by the number that stands for it inside; none for ids that are numbers."""
PlaceUnit = Literal["annotation", "line", "object"]


@dataclasses.dataclass(frozen=True)
class AnnotationTable:
    """The annotations of one split as they are written, numbers for text where text is a number.

    Args:
        source: The file or folder that they come from, for messages.
        image_ids: int64 ``[I]``; may repeat. From 1 in the order of names, where the format has no ids.
        file_names: Relative to the image folder; may lead out of it, may repeat.
        sizes_hw: Pixels as written, int32 ``[I, 2]``; 0 where nothing usable is written.
        category_ids: Ids that the format itself has, ``[C]``; may repeat.
        category_names: ``[C]``.
        annotation_ids: int64 ``[N]``; may repeat. From 1 where the format has no ids.
        image_refs: Image id that each annotation names, int64 ``[N]``.
        category_refs: Category id that each annotation names, int64 ``[N]``.
        boxes_xywh: Upper left corner, width and height in pixels, float64 ``[N, 4]``; NaN where there is no
            number. Boxes of formats without pixels are scaled by ``sizes_hw``.
        area: Pixels, float64 ``[N]``; NaN where none is written.
        iscrowd: bool ``[N]``.
        report: Faults: what could not be put into the columns, or only after a conversion.
        label_files: File that each image's annotations are written in, ``[I]``; empty for a single file.
        places: Line or object of each annotation in its label file, from 1, int64 ``[N]``; with
            ``label_files`` only.
        unit: Unit that ``places`` counts.
        supercategories: Names under which categories are grouped, each once; Roboflow lists one as a category.
        image_id_texts: Ids of images that are no numbers in the file; references to unlisted images, too. Their
            numbers are in the order of the texts. Likewise for annotations and categories:
        annotation_id_texts: see above
        category_id_texts: see above
        objects_found: Number of objects in the files; if not given, the rows and what ``report`` says was lost.
        masks: The mask of each annotation as it is written; None unless asked for.
        stuff: Ids of categories that have no number, such as sky.
    """

    source: Path
    image_ids: np.ndarray
    file_names: Sequence[str]
    sizes_hw: np.ndarray
    category_ids: Sequence[int]
    category_names: Sequence[str]
    annotation_ids: np.ndarray
    image_refs: np.ndarray
    category_refs: np.ndarray
    boxes_xywh: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    report: ReadReport
    label_files: Sequence[str] = ()
    places: np.ndarray | None = None
    unit: PlaceUnit = "annotation"
    supercategories: Sequence[str] = ()
    image_id_texts: IdTexts = dataclasses.field(default_factory=dict)
    annotation_id_texts: IdTexts = dataclasses.field(default_factory=dict)
    category_id_texts: IdTexts = dataclasses.field(default_factory=dict)
    objects_found: int = -1
    masks: ObjectMasks | None = None
    stuff: Collection[int] = ()

    def __post_init__(self) -> None:
        if self.objects_found < 0:
            lost = sum(finding.objects for finding in self.report.findings)
            object.__setattr__(self, "objects_found", len(self.annotation_ids) + lost)

    @property
    def images_found(self) -> int:
        """Number of images that are listed, or lie there."""
        lost = (finding.count for finding in self.report.findings if finding.fault.loses == "image")
        return len(self.image_ids) + sum(lost)

    def image_rows(self) -> np.ndarray:
        """Find the row of ``image_ids`` of each annotation, the first where ids repeat; -1 if there is none."""
        return positions_of(self.image_refs, self.image_ids)

    def class_rows(self) -> np.ndarray:
        """Find the row of ``category_ids`` of each annotation, the first where ids repeat; -1 if there is none."""
        return positions_of(self.category_refs, np.array(self.category_ids, dtype=np.int64))

    def id_shift(self) -> int:
        """Return 1 if all categories are named by numbers one too low, -1 if one too high; 0 if nothing shows it.

        The sign of it is that some ids are not listed, and that all are once shifted by one.
        """
        known, refs = np.array(self.category_ids, dtype=np.int64), np.unique(self.category_refs)
        is_odd = len(known) > 0 and bool((positions_of(refs, known) < 0).any())
        shifts = (shift for shift in (1, -1) if not (positions_of(refs + shift, known) < 0).any())
        return next(shifts, 0) if is_odd else 0

    def place(self, row: int, image_row: int) -> str:
        """Name the place of an annotation, for messages: ``annotation 17``, ``labels/a.txt line 3``."""
        if self.places is None or not self.label_files or image_row < 0:
            number = int(self.annotation_ids[row])
            return f"annotation {self.annotation_id_texts.get(number, number)}"
        return f"{self.label_files[image_row]} {self.unit} {self.places[row]}"


def positions_of(wanted: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Find the position of each wanted id in ``ids``, the first where it repeats, -1 where missing; int64."""
    if not len(ids):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    places = np.searchsorted(ids, wanted, sorter=order)
    found = order[np.minimum(places, len(ids) - 1)]
    rows: np.ndarray = np.where(ids[found] == wanted, found, -1)
    return rows
