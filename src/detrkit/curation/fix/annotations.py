"""The annotation entries of a split as they should be.

Shapes: N annotations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detrkit.classes import SizeHW
from detrkit.curation.check.box_formats import EDGE_PIXELS, overhang
from detrkit.curation.check.masks import BOX_PIXELS, BOX_SHARE, Masks, mask_entry_clipped
from detrkit.curation.check.source import ImageFacts, SplitData
from detrkit.curation.fix.changes import Change

_DIGITS = 6
_SAME_PIXELS = 1e-3
_SAME_SHAPE = 0.01
"""Two sizes have the same shape if width over height differs by less than this share."""


class AnnotationRepair:
    """Repairs the annotations of one split.

    Args:
        split: As checked.
        masks: Of the split, if it has some.
        raw: Its annotation entries by row.
        changes: Told of every change.
    """

    def __init__(
        self, split: SplitData, masks: Masks | None, raw: Sequence[Mapping[str, Any]], changes: list[Change]
    ):
        self.split, self.masks, self.raw, self.changes = split, masks, raw, changes
        self._moves: dict[int, _Move] = {}

    def entries(
        self, target: Mapping[int, int], category_ids: Sequence[int], images: Mapping[int, Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Annotation entries of the images that stay.

        Args:
            target: Row of the image entry that the annotations of each image row belong to now.
            category_ids: New id of each category row.
            images: New image entries by row.
        """
        split, table = self.split, self.split.table
        restored = {int(entry["id"]): row for row, entry in images.items()}
        taken: set[int] = set()
        free = int(table.annotation_ids.max(initial=0)) + 1
        seen: set[tuple[Any, ...]] = set()
        result = []
        for row in range(len(table.annotation_ids)):
            image_row = int(split.image_rows[row])
            if image_row < 0:
                image_row = restored.get(int(table.image_refs[row]), -1)
            if image_row >= 0 and image_row not in target:
                continue  # its image was left out, which has been said
            fault = self._fault(row, image_row)
            if fault:
                self._change(row, fault, before=self.raw[row].get("bbox"))
                continue
            image = images[target[image_row]]
            entry = self._entry(row, image_row, image, category_ids[int(split.class_rows[row])])
            if entry is None:
                continue
            key = (entry["image_id"], entry["category_id"], *(round(value, 3) for value in entry["bbox"]))
            if not table.iscrowd[row]:
                if key in seen:
                    self._change(row, "duplicate_boxes", before=self.raw[row].get("bbox"))
                    continue
                seen.add(key)
            if entry["id"] in taken:
                self._change(row, "duplicate_annotation_ids", "id", entry["id"], free)
                entry["id"], free = free, free + 1
            taken.add(entry["id"])
            result.append(entry)
        return result

    def _fault(self, row: int, image_row: int) -> str:
        """Why an annotation is left out; empty if it stays."""
        split = self.split
        if image_row < 0:
            return "unknown_image_id"
        if split.class_rows[row] < 0:
            return "unknown_category_id"
        if np.isnan(split.repaired_xywh[row]).any():
            return str(split.box_fault[row]) or "duplicate_boxes"
        return ""

    def _entry(
        self, row: int, image_row: int, image: Mapping[str, Any], category_id: int
    ) -> dict[str, Any] | None:
        split, table, raw = self.split, self.split.table, self.raw[row]
        size_hw = (int(image["height"]), int(image["width"]))
        entry: dict[str, Any] = {
            **raw,
            "id": int(table.annotation_ids[row]),
            "image_id": image["id"],
            "category_id": category_id,
            "iscrowd": int(table.iscrowd[row]),
        }
        for field in ("id", "image_id", "category_id"):
            before = raw.get(field, entry[field])
            if type(before) is not int:
                self._change(row, "id_is_text", field, before, entry[field])
        move = self._move(image_row, size_hw)
        box = self._box(row, entry, move, size_hw)
        if box is None:
            self._change(row, "box_outside")
            return None
        before_box = raw.get("bbox")
        is_text = isinstance(before_box, list) and any(isinstance(value, str) for value in before_box)
        if (
            split.files.format == "coco"
            and not is_text
            and np.abs(table.boxes_xywh[row] - box).max() < _SAME_PIXELS
        ):
            entry["bbox"] = before_box
        else:
            entry["bbox"] = [_plain(value) for value in box]
            if split.files.format == "coco" or split.box_fault[row]:
                kind = (
                    "number_is_text" if is_text else str(split.box_fault[row]) or move.kind or "mask_box_mismatch"
                )
                before = before_box if split.files.format == "coco" else table.boxes_xywh[row].tolist()
                self._change(row, kind, "bbox", before, entry["bbox"])
        self._set_area(row, entry)
        return entry

    def _box(self, row: int, entry: dict[str, Any], move: _Move, size_hw: SizeHW) -> np.ndarray | None:
        """The box that an annotation gets, and its mask with it; None if nothing of it is in the image."""
        box = _clipped(move.apply(self.split.repaired_xywh[row]), size_hw)
        if self.masks is None or not entry.get("segmentation"):
            return box
        if row in self.masks.fault or (move.kind and isinstance(entry["segmentation"], dict)):
            entry["segmentation"] = []
            self._change(row, "mask_unreadable", "segmentation", "the mask", [])
            return box
        bounds = self.masks.bounds_xyxy[row]
        if isinstance(entry["segmentation"], dict):
            corners = bounds
        else:
            polygons, corners, kind = mask_entry_clipped(entry["segmentation"], move.apply_points, size_hw)
            if polygons is not None:
                entry["segmentation"] = polygons
                self._change(row, kind if not move.kind else move.kind, "segmentation", "the mask", "put right")
        if np.isnan(corners).any():
            return box
        if box is None or _is_far(box, corners):
            fitted = _clipped(np.concatenate([corners[:2], corners[2:] - corners[:2]]), size_hw)
            if fitted is not None and not _is_far(fitted, corners):
                return fitted
            entry["segmentation"] = []
            self._change(row, "mask_box_mismatch", "segmentation", "the mask", [])
        return box

    def _set_area(self, row: int, entry: dict[str, Any]) -> None:
        """An area that fits box and mask; one that does is left as it is."""
        width, height = entry["bbox"][2:]
        area, box_area = float(self.split.table.area[row]), float(width) * float(height)
        mask_area = (
            math.nan if self.masks is None or not entry.get("segmentation") else float(self.masks.area[row])
        )
        best = mask_area if mask_area > 0 and mask_area <= 1.05 * box_area + 2 else box_area
        same_box = entry["bbox"] == self.raw[row].get("bbox")
        wrong = not 0 < area <= (width + 1) * (height + 1) * 1.05 + 2
        far = math.isfinite(mask_area) and best == mask_area
        far = far and (max(area, best) > 2 * min(area, best)) and abs(area - best) > 64
        far = far and abs(area - box_area) > 0.02 * box_area + 2
        if same_box and not wrong and not far:
            return
        entry["area"] = _plain(best)
        if math.isfinite(area) and (wrong or far) and same_box:
            kind = "mask_area_mismatch" if far else ("area_zero" if area == 0 else "area_wrong")
            self._change(row, kind, "area", area, entry["area"])

    def _move(self, image_row: int, size_hw: SizeHW) -> _Move:
        """What happens to the boxes of an image whose size was put right."""
        if image_row not in self._moves:
            self._moves[image_row] = _move_of(self.split, image_row, size_hw)
        return self._moves[image_row]

    def _change(self, row: int, kind: str, field: str = "", before: Any = None, after: Any = None) -> None:
        self.changes.append(Change(self.split.name, kind, self.split.place(row), field, before, after))


class _Move:
    """A change of frame: by a scale, or by a turn of an image that lay on its side."""

    def __init__(
        self, kind: str = "", scale_xy: tuple[float, float] = (1, 1), orientation: int = 1, size: SizeHW = (0, 0)
    ):
        self.kind, self.scale, self.orientation, self.stored_hw = kind, np.array(scale_xy), orientation, size

    def apply(self, xywh: np.ndarray) -> np.ndarray:
        if not self.kind:
            return xywh
        corners = self.apply_points(np.stack([xywh[:2], xywh[:2] + xywh[2:]]))
        return np.concatenate([corners.min(axis=0), np.abs(corners[1] - corners[0])])

    def apply_points(self, points: np.ndarray) -> np.ndarray:
        """Points ``[n, 2]`` in the new frame."""
        if not self.kind:
            return points
        x, y = points[:, 0] * self.scale[0], points[:, 1] * self.scale[1]
        height, width = self.stored_hw
        turned = {5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x)}
        return np.stack(turned.get(self.orientation, (x, y)), axis=1)


def _move_of(split: SplitData, image_row: int, size_hw: SizeHW) -> _Move:
    listed: SizeHW = (int(split.table.sizes_hw[image_row, 0]), int(split.table.sizes_hw[image_row, 1]))
    facts: ImageFacts | None = split.facts[image_row]
    if facts is None or not all(listed) or listed == size_hw or split.files.format == "yolo":
        return _Move()
    boxes = split.repaired_xywh[split.image_rows == image_row]
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    fits_new, fits_listed = _fit(boxes, size_hw), _fit(boxes, listed)
    if listed == facts.stored_hw and listed != facts.upright_hw:
        if fits_listed and not fits_new:  # drawn before the image was turned upright
            return _Move("exif_rotated_size", (1, 1), facts.orientation, facts.stored_hw)
        return _Move()
    shape, new_shape = listed[1] / listed[0], size_hw[1] / size_hw[0]
    same_shape = abs(shape - new_shape) <= _SAME_SHAPE * shape
    if fits_listed and (not fits_new or same_shape) and listed != size_hw[::-1]:
        return _Move("size_mismatch", (size_hw[1] / listed[1], size_hw[0] / listed[0]))
    return _Move()


def _fit(boxes: np.ndarray, size_hw: SizeHW) -> bool:
    extent = np.array([size_hw[1], size_hw[0]] * 2, dtype=np.float64)
    return bool((overhang(boxes, np.broadcast_to(extent, boxes.shape)) <= EDGE_PIXELS).all())


def _clipped(xywh: np.ndarray, size_hw: SizeHW) -> np.ndarray | None:
    limit = np.array([size_hw[1], size_hw[0]], dtype=np.float64)
    upper, lower = np.clip(xywh[:2], 0, limit), np.clip(xywh[:2] + xywh[2:], 0, limit)
    if (lower <= upper).any():
        return None
    clipped: np.ndarray = np.concatenate([upper, lower - upper])
    return xywh if np.abs(clipped - xywh).max() < 1e-9 else clipped


def _is_far(xywh: np.ndarray, corners: np.ndarray) -> bool:
    own = np.concatenate([xywh[:2], xywh[:2] + xywh[2:]])
    tolerance = np.maximum(BOX_PIXELS, BOX_SHARE * np.tile(xywh[2:], 2))
    return bool((np.abs(own - corners) > tolerance).any())


def _plain(value: float) -> float | int:
    rounded = round(float(value), _DIGITS)
    return int(rounded) if rounded.is_integer() else rounded
