"""Reading a COCO JSON file into columns.

Training needs a tenth of what such a file holds, so msgspec skips the rest (masks, addresses, licences) while it
parses. Files that it does not take, such as those with ``NaN`` or with an object where a list belongs, go the slow
way through ``json``, which also words the errors.

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from detrkit.data.faults import Findings
from detrkit.data.formats.base import usable_size
from detrkit.data.table import AnnotationTable
from detrkit.errors import AnnotationError, DataError

_INT64_MAX = 2**63 - 1


class _Image(msgspec.Struct, gc=False):
    id: Any = msgspec.UNSET
    file_name: Any = None
    height: Any = None
    width: Any = None


class _Annotation(msgspec.Struct, gc=False):
    id: Any = msgspec.UNSET
    image_id: Any = msgspec.UNSET
    category_id: Any = msgspec.UNSET
    bbox: Any = None
    area: Any = None
    iscrowd: Any = 0


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


def load_coco_table(path: Path) -> AnnotationTable:
    """Read a COCO JSON file; nothing is left out, numbers written as text are converted and reported.

    Raises:
        AnnotationError: The file is missing, cut off, not COCO JSON, or holds ids that are no integers.
        DataError: It lists no images or no categories.
    """
    try:
        return _Columns(path).table(*_parse(path))
    except DataError as error:
        if str(error).startswith(str(path)):
            raise
        raise type(error)(f"{path}: {error}") from error


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


def _parse(path: Path) -> tuple[_Entries, _Entries, _Entries]:
    """Parse a file into images, annotations and categories."""
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_Content)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        slowly = load_json(path)
        return _entries(slowly, "images"), _entries(slowly, "annotations"), _entries(slowly, "categories")
    return content.images, content.annotations, content.categories


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
            except msgspec.ValidationError:
                entry = msgspec.json.decode(entry)
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

    def table(self, images: _Entries, annotations: _Entries, categories: _Entries) -> AnnotationTable:
        if not categories:
            raise DataError("lists no categories, so there is nothing to detect")
        if not images:
            raise DataError("the data set is empty: it lists no images")
        classes = _structs(_Category, categories, "categories")
        category_ids = self._ints([entry.id for entry in classes], "id", "categories")
        category_names = [_class_name(entry, category_ids[row]) for row, entry in enumerate(classes)]
        listed = _structs(_Image, images, "images")
        image_ids = self._ints([entry.id for entry in listed], "id", "images")
        sizes = [usable_size(_number(entry.height), _number(entry.width)) for entry in listed]
        file_names = [_file_name(entry, row, image_ids) for row, entry in enumerate(listed)]
        # Filled chunk by chunk: joined at the end, the columns would be in memory twice while the file still is.
        columns = _empty_columns(len(annotations))
        for start in range(0, len(annotations), _CHUNK):
            for column, part in zip(columns, self._chunk(annotations, start), strict=True):
                column[start : start + len(part)] = part
        annotation_ids, image_refs, category_refs, boxes, area, iscrowd = columns
        return AnnotationTable(
            source=self.path,
            image_ids=image_ids,
            file_names=file_names,
            sizes_hw=np.array(sizes, dtype=np.int32).reshape(-1, 2),
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
        )

    def _chunk(self, annotations: _Entries, start: int) -> tuple[np.ndarray, ...]:
        """Return columns of some annotations: ids, image ids, category ids, boxes, areas, crowd flags."""
        entries = _structs(_Annotation, annotations, "annotations", start, start + _CHUNK)
        numbers = enumerate((entry.id for entry in entries), start=start)
        ids = [number if value is msgspec.UNSET else value for number, value in numbers]
        return (
            self._ints(ids, "id", "annotations", start),
            self._ints([entry.image_id for entry in entries], "image_id", "annotations", start),
            self._ints([entry.category_id for entry in entries], "category_id", "annotations", start),
            self._boxes([entry.bbox for entry in entries], ids),
            _floats([entry.area for entry in entries]),
            _floats([entry.iscrowd for entry in entries]) == 1,
        )

    def _ints(self, values: Sequence[Any], key: str, what: str, start: int = 0) -> np.ndarray:
        if set(map(type, values)) <= {int}:
            try:
                return np.array(values, dtype=np.int64)
            except OverflowError:
                pass
        named = enumerate(values, start=start)
        converted = [self._int(value, key, f"{what}[{position}]") for position, value in named]
        return np.array(converted, dtype=np.int64)

    def _int(self, value: Any, key: str, where: str) -> int:
        number = value if type(value) is int else _whole(value)
        if number is None or abs(number) > _INT64_MAX:
            got = f"no {key}" if value is msgspec.UNSET else f"{key} {value!r}"
            raise AnnotationError(f"{where} has {got}, expected an integer; correct the file")
        if type(value) is not int:
            self.report.add("id_is_text", f"{where}: {key} {value!r}")
        return number

    def _boxes(self, values: Sequence[Any], annotation_ids: Sequence[Any]) -> np.ndarray:
        if set(map(type, values)) <= {list} and set(map(len, values)) <= {4}:
            flat = list(chain.from_iterable(values))
            if set(map(type, flat)) <= {int, float}:
                return np.array(flat, dtype=np.float64).reshape(-1, 4)
        boxes = np.full((len(values), 4), np.nan)
        for row, value in enumerate(values):
            if not isinstance(value, list) or len(value) != 4:
                continue  # stays NaN
            boxes[row] = [_number(item) for item in value]
            if any(isinstance(item, str) for item in value) and np.isfinite(boxes[row]).all():
                self.report.add("number_is_text", f"annotation {annotation_ids[row]}: {value!r}")
        return boxes


def _empty_columns(count: int) -> tuple[np.ndarray, ...]:
    ids, image_refs, category_refs = (np.empty(count, dtype=np.int64) for _ in range(3))
    return ids, image_refs, category_refs, np.empty((count, 4)), np.empty(count), np.empty(count, dtype=bool)


def _headings(classes: Sequence[_Category]) -> list[str]:
    """Return names that other categories are grouped under; COCO's ``person`` is in a group of its own."""
    names = {entry.supercategory for entry in classes if entry.supercategory != entry.name}
    return sorted(name for name in names if isinstance(name, str))


def _class_name(entry: _Category, category_id: int) -> str:
    if not isinstance(entry.name, (str, int)):
        raise AnnotationError(f"category {category_id} has name {entry.name!r}, expected text")
    return str(entry.name)


def _file_name(entry: _Image, row: int, image_ids: np.ndarray) -> str:
    name = entry.file_name
    if not isinstance(name, str) or not name or "\0" in name:
        raise AnnotationError(f"images[{row}] (id {image_ids[row]}) has file_name {name!r}, expected a path")
    return name


def _floats(values: Sequence[Any]) -> np.ndarray:
    if set(map(type, values)) <= {int, float}:
        return np.array(values, dtype=np.float64)
    return np.array([_number(value) for value in values], dtype=np.float64)


def _whole(value: Any) -> int | None:
    try:
        number = int(value) if isinstance(value, (str, float)) else None
    except (ValueError, OverflowError):
        return None
    return None if isinstance(value, float) and value != number else number


def _number(value: object) -> float:
    """Return a JSON number, or text that reads as one; NaN for anything else."""
    if not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
