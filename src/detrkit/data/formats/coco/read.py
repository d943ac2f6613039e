"""Reading a COCO JSON file into columns.

Training needs a tenth of what such a file holds, so msgspec skips the rest (masks, addresses, licences) while it
parses. Files that it does not take, such as those with ``NaN`` or with an object where a list belongs, go the slow
way through ``json``, which also words the errors.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from detrkit.classes import SizeHW
from detrkit.data.faults import Findings
from detrkit.data.formats.base import read_utf8, usable_size
from detrkit.data.formats.ids import IdNumbers
from detrkit.data.masks import ObjectMasks
from detrkit.data.segmentation import NO_MASK, MaskExtent, mask_extent
from detrkit.data.table import AnnotationTable
from detrkit.errors import AnnotationError, DataError

_NO_ATTRIBUTES = msgspec.Raw(b"null")


class _Image(msgspec.Struct, gc=False):
    id: Any = msgspec.UNSET
    file_name: Any = None
    height: Any = None
    width: Any = None
    coco_url: Any = None


class _Annotation(msgspec.Struct, gc=False):
    id: Any = msgspec.UNSET
    image_id: Any = msgspec.UNSET
    category_id: Any = msgspec.UNSET
    bbox: Any = None
    area: Any = None
    iscrowd: Any = 0
    attributes: msgspec.Raw = _NO_ATTRIBUTES


class _Mask(msgspec.Struct, gc=False):
    """Parsed only for annotations without a box, turned ones, and where masks are asked for."""

    segmentation: Any = None


class _RawMask(msgspec.Struct, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"")


class _Category(msgspec.Struct, gc=False):
    id: Any = msgspec.UNSET
    name: Any = None
    supercategory: Any = None


class _Content(msgspec.Struct, gc=False):
    """The three lists, entries unparsed: parsed all at once, their numbers would take three times the memory."""

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


_Struct = TypeVar("_Struct", bound=msgspec.Struct)
_Entries = Sequence[msgspec.Raw | Mapping[str, Any]]
_CHUNK = 20_000
_LISTS = ("images", "annotations", "categories")
_KEYS = (b'"bbox"', b'"image_id"', b'"category_id"')
_SMALL_BYTES = 1 << 25
_LITERAL = len("Infinity")
_TRAILING_COMMA = re.compile(r",\s*[\]}]")
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+[.,]?[0-9]*|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
"""A number as text; with a decimal comma where its author's country has one."""
_SIDES = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("left", "top", "width", "height"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
)
_LOWER = {"xmax", "x2", "right"}
"""Sides that say that a box is written as its corners."""
_BETWEEN = (r"\s*;\s*", r",?\s+", r"\s*,\s*")
"""What stands between numbers in a text; where it is a blank or semicolon, a comma may be that of decimals."""
_NO_TEXTS = ("false", "False")
_TURNED_DEGREES = 0.01
_UPRIGHT_SHARE = 0.98
"""Share of its bounds that a polygon fills at least where it is an upright rectangle."""


def load_coco_table(path: Path, masks: bool = False) -> AnnotationTable:
    """Read a COCO JSON file; nothing is left out, numbers written as text are converted and reported.

    Args:
        path: The file.
        masks: Read masks too.

    Raises:
        AnnotationError: The file is missing, cut off, not COCO JSON, or lacks an id.
        DataError: It lists no images or no categories.
    """
    try:
        columns = _Columns(path)
        entries = _parse(path, columns.report)
        table = columns.table(*entries)
        return dataclasses.replace(table, masks=ObjectMasks.pack(_mask_texts(entries[1]))) if masks else table
    except DataError as error:
        if str(error).startswith(str(path)):
            raise
        raise type(error)(f"{path}: {error}") from error


def load_json(path: Path, found: Findings | None = None) -> Mapping[str, Any]:
    """Parse a JSON file that holds an object.

    Args:
        path: The file, in any encoding that :func:`decode_text` tells.
        found: Takes up ``text_not_utf8`` where it is not UTF-8.

    Raises:
        AnnotationError: It is missing, cut off, not JSON, or holds something else.
    """
    data = read_utf8(path, found)
    try:
        content = json.loads(data)
    except json.JSONDecodeError as error:
        at = len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
        raise AnnotationError(f"{path}: not valid JSON at byte {at}: {_json_fault(error, at)}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise AnnotationError(f"{path}: not valid JSON: {error}; download or export it again") from error
    if not isinstance(content, dict):
        raise AnnotationError(
            f"{path}: holds a {type(content).__name__}, expected a COCO object with images, annotations and "
            "categories (a list is what detections are saved as)"
        )
    return content


def _json_fault(error: json.JSONDecodeError, at: int) -> str:
    """Say what is wrong with a JSON text, and what to do."""
    comma = _TRAILING_COMMA.match(error.doc, max(error.doc.rfind(",", 0, error.pos + 1), 0))
    if comma and comma.end() > error.pos:
        return f"line {error.lineno} has a comma too much before {comma[0][-1]!r}; remove it"
    rest = error.doc[error.pos :].rstrip()
    is_cut = not rest or (error.msg != "Extra data" and len(rest) < _LITERAL and rest[-1] not in "]}")
    if is_cut or error.msg.startswith("Unterminated string"):
        return f"the file stops after byte {at} and is probably cut off; download or export it again"
    return f"line {error.lineno}, column {error.colno}: {error.msg}; download or export it again"


def _parse(path: Path, found: Findings) -> tuple[_Entries, _Entries, _Entries]:
    """Parse a file into images, annotations and categories."""
    data = read_utf8(path, found)
    _refuse_repeated_lists(data)
    try:
        content = msgspec.json.decode(data, type=_Content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        slowly = load_json(path)
        return _entries(slowly, "images"), _entries(slowly, "annotations"), _entries(slowly, "categories")
    _report_repeated_keys(data, content.annotations, found)
    return content.images, content.annotations, content.categories


def _report_repeated_keys(data: bytes, annotations: list[msgspec.Raw], found: Findings) -> None:
    """Report annotations with a key twice, of which readers keep the last; looked for in small files only.

    Counting three keys takes a tenth or more of the time to parse a file, and large ones are written by programs.
    """
    is_small = len(data) <= _SMALL_BYTES
    keys = [key for key in _KEYS if is_small and data.count(key) > len(annotations)]
    for row, entry in enumerate(annotations if keys else ()):
        text = bytes(entry)
        if not any(text.count(key) > 1 for key in keys):
            continue
        with contextlib.suppress(ValueError, TypeError, RecursionError):  # said when it is parsed
            names = json.loads(text, object_pairs_hook=lambda pairs: [name for name, _ in pairs])
            repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            if repeated:
                found.add("repeated_keys", f"annotations[{row}]: {repeated[0]!r}")


def _refuse_repeated_lists(data: bytes) -> None:
    """Refuse an object with two lists of one name, of which readers keep the last; looked for in small files only.

    Merging files by hand does that; large ones are written by programs, and not read twice.

    Raises:
        AnnotationError: There are two.
    """
    if len(data) > _SMALL_BYTES or max(data.count(b'"%s"' % name.encode()) for name in _LISTS) < 2:
        return
    repeated: list[str] = []

    def pairs(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, value in entries if name in _LISTS and isinstance(value, list)]
        repeated.extend(name for name in _LISTS if names.count(name) > 1)
        return dict(entries)

    with contextlib.suppress(ValueError, RecursionError):  # said when it is parsed
        json.loads(data, object_pairs_hook=pairs)
    if repeated:
        raise AnnotationError(
            f"has {repeated[0]!r} twice in one object, of which only the last would be read; merge the lists"
        )


def _entries(content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    if key not in content:
        raise AnnotationError(
            f"has no {key!r}, expected images, annotations and categories; "
            f"found {', '.join(map(repr, content)) or 'nothing'}; use an instances file of COCO"
        )
    entries = content[key]
    if not isinstance(entries, list):
        raise AnnotationError(f"{key!r} is a {type(entries).__name__}, expected a list")
    return entries


def _structs(
    kind: type[_Struct], entries: _Entries, what: str, start: int = 0, stop: int | None = None
) -> list[_Struct]:
    """Decode entries ``start`` to ``stop`` with the fields of ``kind``."""
    decode = msgspec.json.Decoder(kind).decode
    found: list[_Struct] = []
    for position, entry in enumerate(entries[start:stop], start=start):
        if isinstance(entry, msgspec.Raw):
            try:
                found.append(decode(entry))
                continue
            except msgspec.DecodeError:
                entry = json.loads(bytes(entry))
        if not isinstance(entry, dict):
            raise AnnotationError(f"{what}[{position}] is a {type(entry).__name__}, expected an object")
        found.append(kind(**{field: entry[field] for field in kind.__struct_fields__ if field in entry}))
    return found


class _Columns:
    """Turns parsed entries into columns; its errors do not name the file yet.

    Whole columns are converted at once where every value is of the expected type; values one by one only where
    some are not.
    """

    def __init__(self, path: Path):
        self.path, self.report = path, Findings(str(path))
        self.image_ids = IdNumbers("image", self.report)
        self.annotation_ids = IdNumbers("annotation", self.report)
        self.category_ids = IdNumbers("category", self.report)
        self.unnumbered: list[int] = []
        self.size_by_id: dict[Any, SizeHW] = {}

    def table(self, images: _Entries, annotations: _Entries, categories: _Entries) -> AnnotationTable:
        if not categories:
            raise DataError("lists no categories, so there is nothing to detect")
        if not images:
            raise DataError("the data set is empty: it lists no images")
        classes = _structs(_Category, categories, "categories")
        category_ids = self.category_ids.take([entry.id for entry in classes], "id", "categories")
        category_names = [_class_name(entry) for entry in classes]
        listed = _structs(_Image, images, "images")
        image_ids = self.image_ids.take([entry.id for entry in listed], "id", "images")
        sizes = [self._floats([getattr(entry, side) for entry in listed], side) for side in ("height", "width")]
        sizes_hw = list(map(usable_size, *sizes))
        self.size_by_id = dict(zip([entry.id for entry in listed], sizes_hw, strict=True))
        file_names = [self._file_name(entry, row) for row, entry in enumerate(listed)]
        # Filled chunk by chunk: joined at the end, the columns would be in memory twice while the file still is.
        columns = _empty_columns(len(annotations))
        for start in range(0, len(annotations), _CHUNK):
            for column, part in zip(columns, self._chunk(annotations, start), strict=True):
                column[start : start + len(part)] = part
        annotation_ids, image_refs, category_refs, boxes, area, iscrowd = columns
        image_id_texts = self.image_ids.settle(image_ids, image_refs, file_names)
        category_id_texts = self.category_ids.settle(category_ids, category_refs, category_names)
        annotation_id_texts = self.annotation_ids.settle(annotation_ids)
        if self.unnumbered:
            free = np.setdiff1d(np.arange(1, len(annotations) + 1), annotation_ids)[: len(self.unnumbered)]
            annotation_ids[self.unnumbered] = free
            place = f"annotations[{self.unnumbered[0]}] gets {free[0]}"
            self.report.add("annotation_ids_missing", place, count=len(self.unnumbered))
        return AnnotationTable(
            source=self.path,
            image_ids=image_ids,
            file_names=file_names,
            sizes_hw=np.array(sizes_hw, dtype=np.int32).reshape(-1, 2),
            category_ids=category_ids.tolist(),
            category_names=category_names,
            annotation_ids=annotation_ids,
            image_refs=image_refs,
            category_refs=category_refs,
            boxes_xywh=boxes,
            area=area,
            iscrowd=iscrowd,
            report=self.report.report(),
            supercategories=_headings(classes),
            image_id_texts=image_id_texts,
            annotation_id_texts=annotation_id_texts,
            category_id_texts=category_id_texts,
        )

    def _chunk(self, annotations: _Entries, start: int) -> tuple[np.ndarray, ...]:
        """Return columns of some annotations: ids, image ids, category ids, boxes, areas, crowd flags."""
        entries = _structs(_Annotation, annotations, "annotations", start, start + _CHUNK)
        ids = [entry.id for entry in entries]
        if msgspec.UNSET in ids:  # numbered when all others are known
            self.unnumbered += [row for row, value in enumerate(ids, start=start) if value is msgspec.UNSET]
            ids = [0 if value is msgspec.UNSET else value for value in ids]
        columns = (
            self.annotation_ids.take(ids, "id", "annotations", start),
            self.image_ids.take([entry.image_id for entry in entries], "image_id", "annotations", start),
            self.category_ids.take([entry.category_id for entry in entries], "category_id", "annotations", start),
        )
        boxes = self._boxes(entries, start)
        area = self._floats([entry.area for entry in entries], "area")
        self._take_boxes_of_masks(boxes, area, annotations, start, entries)
        self._turn_boxes(boxes, annotations, start, entries)
        return (*columns, boxes, area, crowd_flags([entry.iscrowd for entry in entries], self.report))

    def _boxes(self, entries: Sequence[_Annotation], start: int) -> np.ndarray:
        values = [entry.bbox for entry in entries]
        if set(map(type, values)) <= {list} and set(map(len, values)) <= {4}:
            flat = list(chain.from_iterable(values))
            if set(map(type, flat)) <= {int, float}:
                return np.array(flat, dtype=np.float64).reshape(-1, 4)
        boxes = np.full((len(values), 4), np.nan)
        for row, value in enumerate(values):
            four = value if isinstance(value, list) else _four(value)
            if len(four) != 4:
                continue  # stays NaN
            boxes[row] = [json_number(item) for item in four]
            if isinstance(value, dict) and value.keys() & _LOWER:
                boxes[row, 2:] -= boxes[row, :2]
            if any(isinstance(item, str) for item in value) and np.isfinite(boxes[row]).all():
                self.report.add("number_is_text", f"{_place(entries[row], start + row)}: {value!r}")
        return boxes

    def _take_boxes_of_masks(
        self,
        boxes: np.ndarray,
        area: np.ndarray,
        annotations: _Entries,
        start: int,
        entries: Sequence[_Annotation],
    ) -> None:
        """Put the bounds of their masks in place of boxes that are not given, and their areas likewise."""
        for row in np.flatnonzero(np.isnan(boxes).all(axis=1)).tolist():
            place = _place(entries[row], start + row)
            try:
                extent = _extent(annotations, start + row, self.size_by_id.get(entries[row].image_id))
            except ValueError as error:
                self.report.add("mask_unreadable", f"{place}: {error}")
                continue
            if not np.isfinite(extent.bounds_xyxy).all():
                continue  # left out and counted as box_missing later
            boxes[row] = [*extent.bounds_xyxy[:2], *(extent.bounds_xyxy[2:] - extent.bounds_xyxy[:2])]
            area[row] = extent.area if np.isnan(area[row]) else area[row]
            self.report.add("box_from_mask", f"{place}: {boxes[row].round(2).tolist()}")

    def _turn_boxes(
        self, boxes: np.ndarray, annotations: _Entries, start: int, entries: Sequence[_Annotation]
    ) -> None:
        """Put the bounds of the turned rectangle in place of boxes that CVAT gives an angle with.

        Its ``attributes.rotation`` is in degrees, around the centre. A polygon that is no upright rectangle has
        been turned already, so that its bounds are those of the object.
        """
        for row, entry in enumerate(entries):
            if entry.attributes is _NO_ATTRIBUTES:
                continue
            degrees = _rotation(entry.attributes)
            if not min(degrees % 180, -degrees % 180) > _TURNED_DEGREES or not np.isfinite(boxes[row]).all():
                continue
            extent, written = NO_MASK, boxes[row].copy()
            with contextlib.suppress(ValueError):
                extent = _extent(annotations, start + row)
            bounds = extent.bounds_xyxy
            if extent.area < _UPRIGHT_SHARE * np.prod(bounds[2:] - bounds[:2]):
                boxes[row] = [*bounds[:2], *(bounds[2:] - bounds[:2])]
            else:
                cosine, sine = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
                turned = written[2:] @ np.array([[cosine, sine], [sine, cosine]])
                boxes[row] = [*(written[:2] + (written[2:] - turned) / 2), *turned]
            place = _place(entry, start + row)
            self.report.add("box_turned", f"{place}: {written.tolist()} turned by {degrees:g} degrees")

    def _floats(self, values: Sequence[Any], key: str) -> np.ndarray:
        if not set(map(type, values)) <= {int, float}:
            texts = [value for value in values if isinstance(value, str) and not math.isnan(json_number(value))]
            if texts:
                self.report.add("number_is_text", f"{key} {texts[0]!r}", count=len(texts))
            values = [json_number(value) for value in values]
        return np.array(values, dtype=np.float64)

    def _file_name(self, entry: _Image, row: int) -> str:
        name = entry.file_name
        if name is None and isinstance(entry.coco_url, str):  # LVIS lists the images of COCO by their address
            name = entry.coco_url.rpartition("/")[2]
            self.report.add("file_name_from_url", f"images[{row}]: {name}")
        if not _is_text(name) or not name or "\0" in name:
            got = "no id" if entry.id is msgspec.UNSET else f"id {entry.id!r}"
            raise AnnotationError(f"images[{row}] ({got}) has file_name {name!r}, expected a path")
        return str(name)


def _four(value: Any) -> Sequence[Any]:
    """Return the four numbers of a box that is written as text or with names; empty if it is something else."""
    if isinstance(value, dict):
        return next(([value[key] for key in keys] for keys in _SIDES if value.keys() >= set(keys)), ())
    text = value.strip(" \t[](){}") if isinstance(value, str) else ""
    return next((words for mark in _BETWEEN if len(words := re.split(mark, text)) == 4), ())


def _place(entry: _Annotation, row: int) -> str:
    return f"annotations[{row}]" if entry.id is msgspec.UNSET else f"annotation {entry.id}"


def _extent(annotations: _Entries, row: int, size_hw: SizeHW | None = None) -> MaskExtent:
    """Return the extent of the mask of an annotation, by :func:`mask_extent`."""
    return mask_extent(_structs(_Mask, annotations, "annotations", row, row + 1)[0].segmentation, size_hw)


def _mask_texts(annotations: _Entries) -> Iterator[bytes]:
    """Yield the text of each annotation's ``segmentation``, unparsed; empty where there is none."""
    for start in range(0, len(annotations), _CHUNK):
        for entry in _structs(_RawMask, annotations, "annotations", start, start + _CHUNK):
            mask = entry.segmentation
            yield bytes(mask) if isinstance(mask, msgspec.Raw) else json.dumps(mask).encode()


def _rotation(attributes: Any) -> float:
    """Return the angle of an annotation in degrees, 0 where it has none."""
    if isinstance(attributes, msgspec.Raw):
        attributes = json.loads(text) if b'"rotation"' in (text := bytes(attributes)) else None
    degrees = json_number(attributes.get("rotation")) if isinstance(attributes, dict) else 0.0
    return degrees if math.isfinite(degrees) else 0.0


def _empty_columns(count: int) -> tuple[np.ndarray, ...]:
    ids, image_refs, category_refs = (np.empty(count, dtype=np.int64) for _ in range(3))
    return ids, image_refs, category_refs, np.empty((count, 4)), np.empty(count), np.empty(count, dtype=bool)


def _headings(classes: Sequence[_Category]) -> list[str]:
    """Return names that other categories are grouped under; COCO's ``person`` is in a group of its own."""
    names = {entry.supercategory for entry in classes if entry.supercategory != entry.name}
    return sorted(name for name in names if isinstance(name, str))


def _class_name(entry: _Category) -> str:
    name = str(entry.name) if type(entry.name) is int else entry.name
    if not _is_text(name):
        raise AnnotationError(f"category {entry.id} has name {name!r}, expected text")
    return str(name)


def _is_text(value: Any) -> bool:
    """Return whether a value is text, without halves of characters (surrogates), which cannot be written."""
    return isinstance(value, str) and value.encode("utf-8", "ignore").decode() == value


def crowd_flags(values: Sequence[Any], found: Findings) -> np.ndarray:
    """Return which annotations are crowd regions, bool ``[N]``: as in pycocotools, those whose flag is not 0."""
    if set(map(type, values)) <= {int, float, bool} and set(values) <= {0, 1}:
        return np.array(values, dtype=bool)
    flags = np.zeros(len(values), dtype=bool)
    for row, value in enumerate(values):
        number = json_number(value)
        flags[row] = bool(value) and value not in _NO_TEXTS if math.isnan(number) else number != 0
        if value not in (0, 1):
            found.add("crowd_flag_odd", f"iscrowd {value!r} is read as {int(flags[row])}")
    return flags


def json_number(value: object) -> float:
    """Return a JSON number, or text that reads as one; NaN for anything else."""
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        return float(match[1].replace(",", ".")) if match else math.nan
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        return math.nan
