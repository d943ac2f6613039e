"""Reading a COCO JSON file: what can be repaired is repaired and counted, the rest is an error.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detrkit.data.index import CocoIndex, check_inside, missing_images, pack_names
from detrkit.data.report import Defect, ReadReport, ReportBuilder
from detrkit.errors import AnnotationError, DataError, ImageError
from detrkit.ops.images import read_image_size
from detrkit.types import ClassMap, SizeHW

CLIP_REPORTED_PIXELS = 0.01
"""Boxes that leave their image by less are clipped without a word; rounding does that."""

_INT64_MAX = 2**63 - 1


def read_coco(
    annotations: Path, images: Path, on_bad_image: Literal["skip", "error"] = "skip"
) -> tuple[CocoIndex, ReadReport]:
    """Read a COCO JSON file and check that its image files exist.

    Args:
        annotations: The JSON file.
        images: Folder that its file names are relative to.
        on_bad_image: skip: listed images without a file are left out and reported; error: they are an error.

    Raises:
        AnnotationError: The file is cut off, is not COCO JSON, repeats an image id, or names a file outside
            ``images``.
        DataError: Nothing is left to work with.
        ImageError: A listed image file does not exist and ``on_bad_image`` is error.
    """
    annotations, images = Path(annotations), Path(images)
    report = ReportBuilder(str(annotations))
    content = load_json(annotations)
    try:
        index = _Reader(images, report).read(content)
        missing = missing_images(index, images)
    except DataError as error:
        raise type(error)(f"{annotations}: {error}") from error
    if len(missing) == len(index):
        raise DataError(
            f"{annotations}: none of its {len(index)} image files exists, for instance {index.file_name(0)!r}; "
            f"looked in {images}; set data.train_images or data.val_images to the folder that holds them"
        )
    for row in missing:
        report.add(Defect.MISSING_IMAGE, index.file_name(int(row)))
    if len(missing) and on_bad_image == "error":
        raise ImageError(
            f"{annotations}: {len(missing)} of {len(index)} image files do not exist in {images}, for instance "
            f"{index.file_name(int(missing[0]))!r}; restore them or remove their entries"
        )
    if len(missing):
        index = index.select(np.setdiff1d(np.arange(len(index)), missing))
    return index, report.build()


def load_json(path: Path) -> Mapping[str, Any]:
    """Parse a JSON file that holds an object.

    Raises:
        AnnotationError: It is missing, cut off, not JSON, or holds something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}; check the path") from error
    try:
        content = json.loads(data)
    except json.JSONDecodeError as error:
        at = len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
        is_cut = error.pos >= len(error.doc.rstrip()) - 1 or error.msg.startswith("Unterminated string")
        reason = f"the file stops at byte {at} of {len(data)} and is probably cut off" if is_cut else error.msg
        raise AnnotationError(
            f"{path}: not valid JSON at byte {at}: {reason}; download or export it again"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise AnnotationError(f"{path}: not valid JSON: {error}; download or export it again") from error
    if not isinstance(content, dict):
        raise AnnotationError(
            f"{path}: holds a {type(content).__name__}, expected a COCO object with images, annotations and "
            "categories (a list is what detections are saved as)"
        )
    return content


@dataclasses.dataclass
class _Columns:
    """Annotations while they are read: plain lists, one item each."""

    image_rows: list[int] = dataclasses.field(default_factory=list)
    labels: list[int] = dataclasses.field(default_factory=list)
    boxes_xywh: list[tuple[float, ...]] = dataclasses.field(default_factory=list)
    area: list[float] = dataclasses.field(default_factory=list)
    iscrowd: list[bool] = dataclasses.field(default_factory=list)
    ids: list[int] = dataclasses.field(default_factory=list)


class _Reader:
    """Turns parsed JSON into an index; its errors do not name the file yet."""

    def __init__(self, images: Path, report: ReportBuilder):
        self.images, self.report = images, report

    def read(self, content: Mapping[str, Any]) -> CocoIndex:
        """The index of every image, missing files included."""
        class_map = self._read_categories(self._list(content, "categories"))
        image_entries = self._list(content, "images")
        if not image_entries:
            raise DataError("the data set is empty: it lists no images")
        image_ids, names, sizes_hw = self._read_images(image_entries)
        annotations = self._list(content, "annotations")
        columns = self._read_annotations(annotations, image_ids, class_map)
        index = self._build(image_ids, names, sizes_hw, columns, class_map)
        if annotations and not len(index.labels):
            found = "\n".join(map(str, self.report.build().findings))
            raise DataError(f"none of its {len(annotations)} annotations can be used; correct the file:\n{found}")
        return index

    def _list(self, content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        if key not in content:
            raise AnnotationError(
                f"has no {key!r}, expected images, annotations and categories; "
                f"found {', '.join(map(repr, content)) or 'nothing'}; use an instances file of COCO"
            )
        entries = content[key]
        if not isinstance(entries, list):
            raise AnnotationError(f"{key!r} is a {type(entries).__name__}, expected a list")
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                kind = type(entry).__name__
                raise AnnotationError(f"{key}[{position}] is a {kind}, expected an object")
        return entries

    def _int(self, entry: Mapping[str, Any], key: str, where: str) -> int:
        value = entry.get(key)
        number = value if type(value) is int else self._converted_int(value, f"{where}: {key} {value!r}")
        if number is None or abs(number) > _INT64_MAX:
            got = f"{key} {value!r}" if key in entry else f"no {key}"
            raise AnnotationError(f"{where} has {got}, expected an integer; correct the file")
        return number

    def _converted_int(self, value: object, example: str) -> int | None:
        try:
            number = int(value) if isinstance(value, (str, float)) else None
        except (ValueError, OverflowError):
            return None
        if number is None or (isinstance(value, float) and value != number):
            return None
        self.report.add(Defect.TEXT_ID, example)
        return number

    def _read_categories(self, entries: Sequence[Mapping[str, Any]]) -> ClassMap:
        if not entries:
            raise DataError("lists no categories, so there is nothing to detect")
        categories: list[dict[str, Any]] = []
        seen: set[str] = set()
        for position, entry in enumerate(entries):
            category_id, name = self._int(entry, "id", f"categories[{position}]"), entry.get("name")
            if not isinstance(name, (str, int)):
                raise AnnotationError(f"category {category_id} has name {name!r}, expected text")
            if str(name) in seen:
                self.report.add(Defect.REPEATED_CLASS_NAME, f"category {category_id} is {name!r} again")
            seen.add(str(name))
            categories.append({"id": category_id, "name": str(name)})
        try:
            return ClassMap.from_categories(categories)
        except DataError as error:
            raise AnnotationError(f"{error}; correct the categories") from error

    def _read_images(self, entries: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[str], np.ndarray]:
        image_ids: list[int] = []
        names: list[str] = []
        sizes_hw = np.zeros((len(entries), 2), dtype=np.int32)
        position_by_id: dict[int, int] = {}
        seen: set[str] = set()
        for position, entry in enumerate(entries):
            where = f"images[{position}]"
            image_id = self._int(entry, "id", where)
            if image_id in position_by_id:
                first = position_by_id[image_id]
                raise AnnotationError(
                    f"{where} has id {image_id}, which images[{first}] has already; "
                    "annotations could belong to either: give every image its own id"
                )
            position_by_id[image_id] = position
            name = entry.get("file_name")
            if not isinstance(name, str) or not name or "\0" in name:
                raise AnnotationError(f"{where} (id {image_id}) has file_name {name!r}, expected a path")
            if name in seen:
                self.report.add(Defect.REPEATED_FILE, f"image {image_id}: {name}")
            seen.add(name)
            image_ids.append(image_id)
            names.append(name)
            sizes_hw[position] = self._size_hw(entry, name)
        return image_ids, names, sizes_hw

    def _size_hw(self, entry: Mapping[str, Any], name: str) -> SizeHW:
        height, width = (_number(entry.get(key)) for key in ("height", "width"))
        if height >= 1 and width >= 1 and max(height, width) < 2**31:
            return int(height), int(width)
        self.report.add(
            Defect.MISSING_SIZE, f"{name}: height {entry.get('height')!r}, width {entry.get('width')!r}"
        )
        return self._file_size_hw(name) or (1, 1)  # left out or an error later, when it is decoded

    def _file_size_hw(self, name: str) -> SizeHW | None:
        check_inside(name, self.images)
        try:
            return read_image_size(self.images / name)
        except ImageError:
            return None

    def _read_annotations(
        self, entries: Sequence[Mapping[str, Any]], image_ids: Sequence[int], class_map: ClassMap
    ) -> _Columns:
        row_by_image = {image_id: row for row, image_id in enumerate(image_ids)}
        class_by_category = class_map.class_id_by_category()
        columns = _Columns()
        seen: set[int] = set()
        for position, entry in enumerate(entries):
            where = f"annotations[{position}]"
            annotation_id = self._int(entry, "id", where) if "id" in entry else position
            if annotation_id in seen:
                self.report.add(Defect.REPEATED_ANNOTATION_ID, f"{where}: id {annotation_id}")
            seen.add(annotation_id)
            row = row_by_image.get(self._int(entry, "image_id", where))
            if row is None:
                self.report.add(Defect.UNKNOWN_IMAGE, f"annotation {annotation_id}: image {entry['image_id']!r}")
                continue
            label = class_by_category.get(self._int(entry, "category_id", where))
            if label is None:
                category = entry["category_id"]
                self.report.add(Defect.UNKNOWN_CATEGORY, f"annotation {annotation_id}: category {category!r}")
                continue
            box = self._box(entry.get("bbox"), annotation_id)
            if box is None:
                continue
            columns.image_rows.append(row)
            columns.labels.append(label)
            columns.boxes_xywh.append(box)
            area = _number(entry.get("area"))
            columns.area.append(area if 0 <= area < math.inf else box[2] * box[3])
            columns.iscrowd.append(_number(entry.get("iscrowd", 0)) == 1)
            columns.ids.append(annotation_id)
        return columns

    def _box(self, value: object, annotation_id: int) -> tuple[float, ...] | None:
        example = f"annotation {annotation_id}: {value!r}"
        if not isinstance(value, list) or len(value) != 4:
            self.report.add(Defect.MISSING_BOX, example)
            return None
        numbers = tuple(map(_number, value))
        if not all(map(math.isfinite, numbers)):
            self.report.add(Defect.NON_FINITE_BOX, example)
            return None
        if numbers[2] <= 0 or numbers[3] <= 0:
            self.report.add(Defect.EMPTY_BOX, example)
            return None
        if any(isinstance(item, str) for item in value):
            self.report.add(Defect.TEXT_NUMBER, example)
        return numbers

    def _build(
        self,
        image_ids: Sequence[int],
        names: Sequence[str],
        sizes_hw: np.ndarray,
        columns: _Columns,
        class_map: ClassMap,
    ) -> CocoIndex:
        image_rows = np.array(columns.image_rows, dtype=np.int64)
        boxes_xywh = np.array(columns.boxes_xywh, dtype=np.float64).reshape(-1, 4)
        boxes = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
        ids = np.array(columns.ids, dtype=np.int64)
        sizes_hw = self._turn_sizes(names, sizes_hw, boxes, image_rows)
        boxes, keep = self._clip(boxes, sizes_hw[image_rows], ids)
        order = np.flatnonzero(keep)[np.argsort(image_rows[keep], kind="stable")]
        counts = np.bincount(image_rows[order], minlength=len(image_ids))
        name_bytes, name_offsets = pack_names(names)
        return CocoIndex(
            image_ids=np.array(image_ids, dtype=np.int64),
            name_bytes=name_bytes,
            name_offsets=name_offsets,
            sizes_hw=sizes_hw,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes_xyxy=boxes[order],
            labels=np.array(columns.labels, dtype=np.int64)[order],
            area=np.array(columns.area, dtype=np.float64)[order],
            iscrowd=np.array(columns.iscrowd, dtype=bool)[order],
            annotation_ids=ids[order],
            class_map=class_map,
        )

    def _turn_sizes(
        self, names: Sequence[str], sizes_hw: np.ndarray, boxes: np.ndarray, image_rows: np.ndarray
    ) -> np.ndarray:
        """Sizes of upright images, where boxes that leave the listed size show that it is the stored one's."""
        limits = sizes_hw[image_rows][:, ::-1]
        suspects = np.unique(image_rows[(boxes[:, 2:] > limits + CLIP_REPORTED_PIXELS).any(axis=1)])
        turned = sizes_hw.copy()
        for row in suspects.tolist():
            listed = (int(sizes_hw[row, 0]), int(sizes_hw[row, 1]))
            upright = self._file_size_hw(names[row])
            if upright is not None and upright != listed and upright == listed[::-1]:
                turned[row] = upright
                self.report.add(Defect.TURNED_SIZE, f"{names[row]}: {listed[0]} x {listed[1]}")
        return turned

    def _clip(self, boxes: np.ndarray, sizes_hw: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes inside their images, and which of them have something left."""
        limits = np.tile(sizes_hw[:, ::-1], 2)
        clipped = np.clip(boxes, 0, limits)
        keep: np.ndarray = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
        moved = np.abs(clipped - boxes).max(axis=1, initial=0) > CLIP_REPORTED_PIXELS
        for defect, rows in ((Defect.OUTSIDE_BOX, ~keep), (Defect.CLIPPED_BOX, keep & moved)):
            for row in np.flatnonzero(rows).tolist():
                corners = ", ".join(f"{value:g}" for value in boxes[row])
                height, width = sizes_hw[row]
                self.report.add(defect, f"annotation {ids[row]}: corners {corners} in {width} x {height} pixels")
        return clipped, keep


def _number(value: object) -> float:
    """A JSON number, or text that reads as one; NaN for anything else."""
    if not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
