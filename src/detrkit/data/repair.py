"""Repair of annotation columns: faults are put right, left out and counted, or refused.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.classes import ClassMap, SizeHW
from detrkit.data.box_formats import judge
from detrkit.data.exif import turn_upright
from detrkit.data.faults import Findings, Ledger, ReadReport
from detrkit.data.index import CocoIndex, WrittenAnnotations, check_inside, pack_names
from detrkit.data.masks import ObjectMasks
from detrkit.data.table import AnnotationTable, IdTexts, positions_of
from detrkit.errors import AnnotationError, DataError, ImageError
from detrkit.ops.images import read_image_size

CLIP_REPORTED_PIXELS = 0.01
"""Boxes that leave their image by less are clipped without a word; rounding does that."""


def build_index(table: AnnotationTable, images: Path) -> tuple[CocoIndex, ReadReport]:
    """Build the index of every listed image, missing files included, and report what was wrong.

    Args:
        table: Annotations as a format was read.
        images: Folder that file names are relative to; sizes that are not written are read from its files.

    Raises:
        AnnotationError: Image or category ids repeat, or a file name leads out of ``images``.
    """
    try:
        return _Repair(table, images).build()
    except DataError as error:
        raise type(error)(f"{table.source}: {error}") from error


def account(table: AnnotationTable, index: CocoIndex, found: Findings) -> ReadReport:
    """Report what was found, with the account of every object and image that the index has or has not."""
    findings = found.build()
    # objects of each class in the files and in the index; classes of one name are one
    before, after = Counter[str](), Counter[str]()
    for counts, rows, names in (
        (before, table.class_rows(), table.category_names),
        (after, index.labels, index.class_map.names),
    ):
        for row, count in enumerate(np.bincount(rows[rows >= 0], minlength=len(names)).tolist()):
            counts[names[row]] += count
    images_left_out = {finding.kind: finding.count for finding in findings if finding.fault.loses == "image"}
    ledger = Ledger(
        objects_found=table.objects_found,
        objects_read=len(index.labels),
        objects_left_out={finding.kind: finding.objects for finding in findings if finding.objects},
        images_found=table.images_found,
        images_read=len(index),
        images_left_out=images_left_out,
        classes={name: (count, after[name]) for name, count in before.items()},
        id_shift=table.id_shift(),
    )
    return ReadReport(found.source, findings, ledger)


class _Repair:
    """One pass over a table; its errors do not name the source yet."""

    def __init__(self, table: AnnotationTable, images: Path):
        self.images = images
        self.found = Findings(table.report.source, table.report.findings)
        self.is_sized = np.ones(len(table.image_ids), dtype=bool)
        self.table = turn_upright(table, images, self.found)

    def build(self) -> tuple[CocoIndex, ReadReport]:
        table = self.table
        class_map = self._class_map()
        self._check_images()
        sizes_hw = self._sizes_hw()
        # annotations that can be used, their boxes inside the image
        self._order_corners(sizes_hw)
        table = self.table
        rows, image_rows, labels = self._usable_rows(class_map)
        written = self._written(class_map)
        masks = self._sound_masks(np.union1d(rows, written.file_rows), sizes_hw)
        xywh = table.boxes_xywh[rows]
        area = np.where(
            (table.area[rows] >= 0) & (table.area[rows] < np.inf), table.area[rows], xywh[:, 2] * xywh[:, 3]
        )
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        boxes, keep = self._clip(boxes, sizes_hw, rows, image_rows)
        # image after image
        order = np.flatnonzero(keep)[np.argsort(image_rows[keep], kind="stable")]
        counts = np.bincount(image_rows[order], minlength=len(table.image_ids))
        name_bytes, name_offsets = pack_names(table.file_names)
        index = CocoIndex(
            image_ids=table.image_ids,
            name_bytes=name_bytes,
            name_offsets=name_offsets,
            sizes_hw=sizes_hw,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes_xyxy=boxes[order],
            labels=labels[order],
            area=area[order],
            iscrowd=table.iscrowd[rows][order],
            annotation_ids=table.annotation_ids[rows][order],
            class_map=class_map,
            written=written
            if masks is None
            else dataclasses.replace(written, masks=masks.select(written.file_rows)),
            is_numbered=bool(table.label_files),
            id_texts=np.array([table.image_id_texts.get(image_id, "") for image_id in table.image_ids.tolist()])
            if table.image_id_texts
            else np.zeros(0, dtype=str),
            category_id_texts=table.category_id_texts,
            masks=None if masks is None else masks.select(rows[order]),
        )
        return index, account(table, index, self.found)

    def _written(self, class_map: ClassMap) -> WrittenAnnotations:
        """Return what evaluation counts: as pycocotools does, every annotation of a listed image and class."""
        table, image_rows, xywh = self.table, self.table.image_rows(), self.table.boxes_xywh
        labels = positions_of(table.category_refs, np.array(class_map.category_ids, dtype=np.int64))
        rows = np.flatnonzero((image_rows >= 0) & (labels >= 0) & np.isfinite(xywh).all(axis=1))
        rows = rows[np.argsort(image_rows[rows], kind="stable")]
        boxes, area = xywh[rows], table.area[rows]
        return WrittenAnnotations(
            image_rows=image_rows[rows],
            labels=labels[rows],
            boxes_xywh=boxes,
            area=np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area),
            iscrowd=table.iscrowd[rows],
            annotation_ids=table.annotation_ids[rows],
            file_rows=rows,
        )

    def _sound_masks(self, rows: np.ndarray, sizes_hw: np.ndarray) -> ObjectMasks | None:
        """Return the masks, boxes in place of those that are lacking or not sound; None if there is not one."""
        table, masks, image_rows = self.table, self.table.masks, self.table.image_rows()
        if masks is None:
            return None
        faults = {row: masks.fault(row, tuple(sizes_hw[image_rows[row]].tolist())) for row in rows.tolist()}
        faulty = np.array([row for row, fault in faults.items() if fault], dtype=np.int64)
        if set(faults.values()) <= {"mask_missing"}:
            return None
        for row in faulty.tolist():
            kind, _, words = faults[row].partition(": ")
            place = table.place(row, int(image_rows[row]))
            self.found.add(kind, f"{place}: {words}" if words else place)
        if len(faulty) in (0, len(rows)):
            return None if len(faulty) else masks
        boxes, limits = table.boxes_xywh[faulty], sizes_hw[image_rows[faulty]][:, ::-1]
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        return masks.with_boxes(faulty, np.clip(corners, 0, np.tile(limits, 2)))

    def _class_map(self) -> ClassMap:
        ids, names = self.table.category_ids, self.table.category_names
        seen: set[str] = set()
        for category_id, name in zip(ids, names, strict=True):
            if name in seen:
                self.found.add("duplicate_class_names", f"category {category_id} is {name!r} again")
            seen.add(name)
        try:
            return ClassMap.from_categories(
                [
                    {"id": category_id, "name": name, "isthing": category_id not in self.table.stuff}
                    for category_id, name in zip(ids, names, strict=True)
                ]
            )
        except DataError as error:
            raise AnnotationError(f"{error}; correct the categories") from error

    def _check_images(self) -> None:
        first_by_id: dict[int, int] = {}
        seen: set[str] = set()
        for row, (image_id, name) in enumerate(
            zip(self.table.image_ids.tolist(), self.table.file_names, strict=True)
        ):
            first = first_by_id.setdefault(image_id, row)
            if first != row:
                written = self.table.image_id_texts.get(image_id, image_id)
                raise AnnotationError(
                    f"images[{row}] has id {written}, which images[{first}] has already; "
                    "annotations could belong to either: give every image its own id"
                )
            if name in seen:
                self.found.add("image_listed_twice", f"image {image_id}: {name}")
            seen.add(name)

    def _sizes_hw(self) -> np.ndarray:
        """Return sizes as written, or else of the files; 1 x 1 for what cannot be opened, met again later."""
        sizes_hw = self.table.sizes_hw.copy()
        for row in np.flatnonzero((sizes_hw < 1).any(axis=1)).tolist():
            name = self.table.file_names[row]
            size_hw = self._file_size_hw(name)
            if size_hw is not None and not self.table.label_files:  # YOLO labels need no size
                self.found.add("missing_size", f"{name}: no height and width of 1 or more")
            if size_hw is None and (self.images / name).is_file():
                self.found.add("image_unreadable", name)
            self.is_sized[row] = size_hw is not None
            sizes_hw[row] = size_hw or (1, 1)
        return sizes_hw

    def _file_size_hw(self, name: str) -> SizeHW | None:
        check_inside(name, self.images)
        try:
            return read_image_size(self.images / name)
        except ImageError:
            return None

    def _order_corners(self, sizes_hw: np.ndarray) -> None:
        """Put corners of Pascal VOC in order that were exchanged, unless they are corner and size."""
        table, boxes, image_rows = self.table, self.table.boxes_xywh.copy(), self.table.image_rows()
        is_negative = np.atleast_1d((boxes[:, 2:] < 0).any(axis=1))
        if table.unit != "object" or not is_negative.any():
            return
        rows = np.flatnonzero(np.isfinite(boxes).all(axis=1) & (image_rows >= 0))
        places = image_rows[rows]
        _, fault = judge(boxes[rows], sizes_hw[places], places, "xyxy", False, table.area[rows], None)
        rows = rows[is_negative[rows] & (fault == "")]
        boxes[rows] = np.concatenate(
            [boxes[rows, :2] + np.minimum(boxes[rows, 2:], 0), np.abs(boxes[rows, 2:])], 1
        )
        for row in rows.tolist():
            place = table.place(row, int(image_rows[row]))
            self.found.add("box_negative", f"{place}: {table.boxes_xywh[row].tolist()}")
        self.table = dataclasses.replace(table, boxes_xywh=boxes)

    def _usable_rows(self, class_map: ClassMap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the annotations with an image, a class and a box: rows, image and class of each; all int64."""
        table, boxes = self.table, self.table.boxes_xywh
        ids, ids_first = table.annotation_ids, np.zeros(len(table.annotation_ids), dtype=bool)
        ids_first[np.unique(ids, return_index=True)[1]] = True
        for row in np.flatnonzero(~ids_first).tolist():
            self.found.add("duplicate_annotation_ids", f"annotations[{row}]: id {ids[row]}")
        image_rows = table.image_rows()
        class_ids = positions_of(table.category_refs, np.array(class_map.category_ids, dtype=np.int64))
        left = np.ones(len(ids), dtype=bool)
        finite = np.isfinite(boxes)
        faults: tuple[tuple[str, Any, str, np.ndarray | None, IdTexts], ...] = (
            ("unknown_image_id", image_rows < 0, "image", table.image_refs, table.image_id_texts),
            ("unknown_category_id", class_ids < 0, "category", table.category_refs, table.category_id_texts),
            ("box_missing", np.isnan(boxes).all(axis=1), "no box", None, {}),
            ("box_not_finite", ~finite.all(axis=1), "box", boxes, {}),
            ("box_empty", ~(boxes[:, 2:] > 0).all(axis=1), "box", boxes, {}),
        )
        for kind, is_faulty, what, values, texts in faults:
            for row in np.flatnonzero(left & is_faulty).tolist():
                value = None if values is None else values[row].tolist()
                got = "" if value is None else f" {texts.get(value, value) if texts else value}"
                self.found.add(kind, f"{table.place(row, int(image_rows[row]))}: {what}{got}")
            left &= ~is_faulty
        rows = np.flatnonzero(left)
        return rows, image_rows[rows], class_ids[rows]

    def _clip(
        self, boxes: np.ndarray, sizes_hw: np.ndarray, rows: np.ndarray, image_rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Clip boxes to their images; return them, and which of them have something left."""
        limits = np.where(self.is_sized[image_rows, None], sizes_hw[image_rows][:, ::-1], np.inf)
        clipped = np.clip(boxes, 0, np.tile(limits, 2))
        keep: np.ndarray = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
        moved = np.abs(clipped - boxes).max(axis=1, initial=0) > CLIP_REPORTED_PIXELS
        for kind, is_faulty in (("box_outside", ~keep), ("box_leaves_image", keep & moved)):
            for row in np.flatnonzero(is_faulty).tolist():
                corners = ", ".join(f"{value:g}" for value in boxes[row])
                place = self.table.place(int(rows[row]), int(image_rows[row]))
                width, height = limits[row]
                self.found.add(kind, f"{place}: corners {corners} in {width:g} x {height:g} pixels")
        return clipped, keep
