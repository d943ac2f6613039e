"""Detections of a file set against a split: which images, which classes and which box format are meant.

One decision is made for a whole file, from all its entries. What is not COCO's own way is said in a note; what
fits nothing is counted, and refused where it is most of the file.

Shapes: D detections, K images or categories that a file names, I images of the split.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np

from detrkit.classes import COCO_CATEGORY_IDS, COCO_NAMES
from detrkit.data.box_formats import FEW_BOXES, box_format_of, looks_normalised, to_xywh
from detrkit.data.formats import BoxFormat
from detrkit.data.index import CocoIndex
from detrkit.data.split import Split
from detrkit.errors import DataError, counted, listed
from detrkit.evaluation.matching import Found, overlapping_pairs
from detrkit.evaluation.truth import ground_truth_from_index

MOST = 0.5
"""Of a file's detections that must be of an image and a class of the split."""
CLEARLY = 4
"""Times as many boxes must lie on objects if a file is read another way than it says."""
NORMALISED_SHARE = 0.9

Way = TypeVar("Way", bound=str)

_FORMAT_WORDS: Mapping[BoxFormat, str] = {
    "xywh": "[x, y, width, height]",
    "xyxy": "corners [x1, y1, x2, y2]",
    "cxcywh": "[centre x, centre y, width, height]",
}


class ImageKey(NamedTuple):
    """What an entry says of its image: an id, a file name, or both."""

    image_id: int | str | None
    file_name: str | None


class Results(NamedTuple):
    """Detections of a file as columns.

    image_keys: Images that the file names, ``[K]``. images: Of each detection, row of them, int64 ``[D]``.
    category_keys: Category ids (or names) likewise, ``[K]``. categories: int64 ``[D]``.
    boxes: float64 ``[D, 4]``, as written. scores: float64 ``[D]``.
    is_ours: detrkit wrote the file, so that nothing of it needs a guess.
    notes: What reading it had to convert, in sentences.
    masks: Of each detection, as written, or None; empty where none has any.
    is_panoptic: They are segments of panoptic pictures; masks are file and id of each, and boxes tell nothing.
    """

    image_keys: Sequence[ImageKey]
    images: np.ndarray
    category_keys: Sequence[int | str]
    categories: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    is_ours: bool
    notes: tuple[str, ...]
    masks: Sequence[Any] = ()
    is_panoptic: bool = False


class MatchedResults(NamedTuple):
    """Detections of a split: rows of its index ``[D]``, ascending; class ids, boxes, scores; notes for people.

    places: Place of each in the file, int64 ``[D]``.
    """

    image_rows: np.ndarray
    class_ids: np.ndarray
    boxes_xywh: np.ndarray
    scores: np.ndarray
    notes: tuple[str, ...]
    places: np.ndarray


def match_results(results: Results, split: Split, name: str) -> MatchedResults:
    """Set the detections of a file against a split.

    Args:
        results: The detections.
        split: The split.
        name: The file, for messages.

    Raises:
        DataError: Most of them are of images or classes that the split does not have.
    """
    index, notes = split.index, list(results.notes)
    # images first; boxes and classes are told by what lies in their image
    rows_of_key, words = _match_images(results, index, name)
    image_rows = rows_of_key[results.images]
    notes += words
    notes += _lost(image_rows, results.images, results.image_keys, "image id", name, split)
    evidence = _Evidence(index, image_rows, results.scores)
    boxes, words = (
        (results.boxes, [])
        if results.is_ours or results.is_panoptic
        else _read_boxes(results.boxes, image_rows, evidence, name)
    )
    notes += words
    if not (results.is_ours or results.is_panoptic) and len(evidence.best) and not evidence.hits(boxes):
        notes.append(
            f"None of the best {counted(len(evidence.best), 'box', 'boxes')} of {name} lies on an object. Are "
            "they of another split, in pixels of pictures of another size, or with x and y exchanged?"
        )
    class_of_key, words = _match_classes(results, boxes, evidence, name)
    class_ids = class_of_key[results.categories]
    notes += words
    notes += _lost(class_ids, results.categories, results.category_keys, "category id", name, split)
    # image after image, entries of an image as in the file
    kept = np.flatnonzero((image_rows >= 0) & (class_ids >= 0))
    kept = kept[np.argsort(image_rows[kept], kind="stable")]
    columns = (image_rows[kept], class_ids[kept], boxes[kept], results.scores[kept])
    if results.is_panoptic:
        lost = len(index) - len(np.unique(rows_of_key[rows_of_key >= 0]))
        missed = (
            f"{counted(lost, 'image')} of {len(index):,} without a picture in {name}: all segments are missed."
        )
        notes += [missed] if lost else []
    else:
        notes += _oddities(*columns, index, name)
    return MatchedResults(*columns, tuple(notes), kept)


def _match_images(results: Results, index: CocoIndex, name: str) -> tuple[np.ndarray, list[str]]:
    """Return the row of the index of each image key, -1 if there is none, int64 ``[K]``, and what to say of it."""
    keys = results.image_keys
    if not keys:
        return np.zeros(0, dtype=np.int64), []
    file_names = [index.file_name(row) for row in range(len(index))]
    ids = _unique((_id_text(index.written_id(row)), row) for row in range(len(index)))
    by_id = _rows(ids, [_id_text(key.image_id) for key in keys])
    ways = {}
    if any(key.file_name for key in keys):
        ways["file_name"] = _by_name(file_names, [key.file_name for key in keys])
    if results.is_ours or not index.is_numbered:
        ways["image_id"] = by_id
    if not results.is_ours:
        ways["name"] = _by_name(file_names, [key.image_id for key in keys])
    # the first of those that explain most, unless another is clearly what lies in the images
    explained = {way: int((rows[results.images] >= 0).sum()) for way, rows in ways.items()}
    possible = [way for way, count in explained.items() if count == max(explained.values())]
    if possible == ["name"] and explained.get("image_id", 0) > MOST * len(results.images):
        possible.insert(0, "image_id")
    way = possible[0]
    if len(possible) > 1 and any((ways[way] != ways[other]).any() for other in possible):
        rows = [ways[other][results.images] for other in possible]
        hits = [_Evidence(index, one, results.scores).hits(results.boxes) for one in rows]
        way = _clearest(possible, hits)
    # what it was, in words
    if index.is_numbered and 2 * explained[way] <= len(results.images):
        numbers = listed([f"{index.image_ids[row]} is {file_names[row]}" for row in range(min(3, len(index)))])
        raise DataError(
            f"{name}: images of this data set have no ids of their own (detrkit numbers them by name: {numbers}), "
            f"and {listed([_shown(key) for key in keys], 3)} in the file name none of its images; expected in "
            'every entry a "file_name", or as "image_id" the file name or its stem'
        )
    first = int(np.argmax(ways[way] >= 0))
    example = f"{_shown(keys[first])} is {file_names[ways[way][first]]}"
    if way == "name":
        return ways[way], [f"image_id of {name} is read as the name, stem or number of the file: {example}."]
    if way == "image_id" and index.is_numbered:
        return ways[way], [f"image_id of {name}, which detrkit wrote, counts the images by name: {example}."]
    if way == "file_name" and not index.is_numbered and (by_id != ways[way])[by_id >= 0].any():
        return ways[way], [f"Of file_name and image_id of {name}, which differ, file_name decides: {example}."]
    return ways[way], []


def _by_name(file_names: Sequence[str], wanted: Sequence[int | str | None]) -> np.ndarray:
    """Return the row of each file name: as listed, by its last part, by its stem, or by the number that is."""
    paths = [PurePosixPath(name) for name in file_names]
    listed_names = _unique((name, row) for row, name in enumerate(file_names))
    parts = _unique((path.name, row) for row, path in enumerate(paths))
    stems = _unique((path.stem, row) for row, path in enumerate(paths))
    numbers = _unique((int(path.stem), row) for row, path in enumerate(paths) if _is_number(path.stem))
    rows = []
    for value in wanted:
        if isinstance(value, int):
            rows.append(numbers.get(value, -1))
            continue
        text = (value or "").replace("\\", "/").removeprefix("./")
        path = PurePosixPath(text)
        found = [listed_names.get(text, -1), parts.get(path.name, -1)]
        found += [
            stems.get(text, -1),
            stems.get(path.stem, -1),
            numbers.get(int(text), -1) if _is_number(text) else -1,
        ]
        rows.append(max(found, key=lambda row: row >= 0))  # the first that there is
    return np.array(rows, dtype=np.int64)


def _match_classes(
    results: Results, boxes: np.ndarray, evidence: _Evidence, name: str
) -> tuple[np.ndarray, list[str]]:
    """Return the class id of each category key, -1 if there is none, int64 ``[K]``, and what to say of it."""
    index, keys = evidence.index, results.category_keys
    texts = index.category_id_texts
    ids = _unique((_id_text(texts.get(one, one)), row) for row, one in enumerate(index.class_map.category_ids))
    own = _rows(ids, map(_id_text, keys))
    if results.is_ours or not len(keys):
        return own, []
    places = {str(row): row for row in range(len(index.class_map))}
    names = _unique((class_name, row) for row, class_name in enumerate(index.class_map.names))
    coco = {str(number): names.get(text, -1) for number, text in zip(COCO_CATEGORY_IDS, COCO_NAMES, strict=True)}
    ways = {
        "": own,
        "class names": _rows(names, keys),
        "places of the classes, counted from 0": _rows(places, map(_id_text, keys)),
        "places of the classes, counted from 1": _rows(places, [_id_text(key, -1) for key in keys]),
        "COCO's ids of 1 to 90": _rows(coco, map(_id_text, keys)),
    }
    # the first of those that explain most, unless another is clearly what lies in the images
    explained = {way: int((rows[results.categories] >= 0).sum()) for way, rows in ways.items()}
    possible = [way for way, count in explained.items() if count == max(explained.values())]
    if not index.is_numbered:
        # the annotations' own ids: others are of classes that do not count, unless that is most
        possible = [""] if explained[""] > MOST * len(results.categories) else ["", *possible]
    hits = [evidence.hits(boxes, ways[way][results.categories]) for way in possible] if len(possible) > 1 else [0]
    way = _clearest(possible, hits)
    shift = f"category_id of {name} is read as {way}, not as the ids of the data set."
    return ways[way], [shift] if way else []


def _read_boxes(
    boxes: np.ndarray, image_rows: np.ndarray, evidence: _Evidence, name: str
) -> tuple[np.ndarray, list[str]]:
    """Return boxes as corner and size in pixels, and what to say if they are not written so."""
    extent = evidence.index.sizes_hw[image_rows][:, [1, 0, 1, 0]].astype(np.float64)
    placed = image_rows >= 0
    is_share = bool(placed.any() and looks_normalised(boxes[placed], extent[placed]).mean() >= NORMALISED_SHARE)
    numbers = boxes * extent if is_share else boxes
    read = {one: to_xywh(numbers, one) for one in _FORMAT_WORDS}
    hits = {one: evidence.hits(xywh) for one, xywh in read.items()}
    # whether boxes lie in their image tells much, and whether they lie on objects tells more
    fits = box_format_of(numbers[placed], extent[placed], "xywh")
    order = sorted(_FORMAT_WORDS, key=lambda one: one != fits)
    chosen = _clearest(order, [hits[one] for one in order])
    unit = "shares of the image (normalised, 0 to 1)" if is_share else "pixels"
    if not is_share and chosen != "xywh" and hits[chosen] <= hits["xywh"]:
        return boxes, [
            f"Many bbox of {name} leave their image as [x, y, width, height] and would fit as "
            f"{_FORMAT_WORDS[chosen]}; they are measured as written, since no more of them lie on objects so."
        ]
    if chosen == "xywh" and not is_share:
        return boxes, []
    return read[chosen], [
        f"bbox of {name} is read as {_FORMAT_WORDS[chosen]} in {unit}, since it does not fit as COCO's [x, y, "
        f"width, height] in pixels: {hits[chosen]} of the best {len(evidence.best)} boxes lie on an object so, "
        f"{evidence.hits(boxes)} as written. All numbers are those of the boxes so read."
    ]


def _clearest(possible: Sequence[Way], hits: Sequence[int]) -> Way:
    """Return the first of some readings, unless by another many times as many boxes lie on objects."""
    best = max(range(len(possible)), key=hits.__getitem__)
    return possible[best if hits[best] >= max(FEW_BOXES, CLEARLY * hits[0]) else 0]


class _Evidence:
    """Counts how many of the best detections, as many as there are objects, lie on an object."""

    def __init__(self, index: CocoIndex, image_rows: np.ndarray, scores: np.ndarray):
        self.index, self.truth = index, ground_truth_from_index(index)
        self.truth_rows = np.argsort(np.argsort(index.image_ids, kind="stable"), kind="stable")
        self.classes = {number: row for row, number in enumerate(self.truth.class_map.category_ids)}
        placed = np.flatnonzero(image_rows >= 0)
        best = placed[np.argsort(-scores[placed], kind="stable")[: len(self.truth.iscrowd)]]
        self.best = best[np.argsort(self.truth_rows[image_rows[best]], kind="stable")]
        self.image_rows = self.truth_rows[image_rows[self.best]]

    def hits(self, boxes_xywh: np.ndarray, class_ids: np.ndarray | None = None) -> int:
        """Return how many lie on an object by IoU 0.5; on one of their class if classes are given."""
        best, own = self.best, np.full(len(self.best), -1)
        if class_ids is not None:
            of_index = np.array(
                [self.classes[number] for number in self.index.class_map.category_ids], dtype=np.int64
            )
            own = np.where(class_ids[best] >= 0, of_index[class_ids[best]], -1)
        found = Found(self.image_rows, own, np.zeros(len(best)), boxes_xywh[best])
        pairs = overlapping_pairs(self.truth, found, ~self.truth.iscrowd)
        near = pairs.iou >= 0.5
        if class_ids is not None:
            near &= self.truth.class_ids[pairs.objects] == own[pairs.detections]
        return len(np.unique(pairs.detections[near]))


def _lost(
    rows: np.ndarray, of_key: np.ndarray, keys: Sequence[ImageKey | int | str], what: str, name: str, split: Split
) -> list[str]:
    """Return what to say of detections whose image or class the split does not have; refuse if that is most."""
    lost = rows < 0
    unknown = [_shown(keys[key]) for key in np.unique(of_key[lost]).tolist()]
    if not unknown:
        return []
    are = f"{len(unknown)} {what}{'s are' if len(unknown) > 1 else ' is'} not in {split.files.annotations}"
    text = f"{are}: {listed(unknown, 5)}; {lost.sum():,} of {counted(len(rows), 'detection')}"
    if lost.mean() > MOST:
        raise DataError(f"{name}: {text}; expected detections on that split, with its own {what}s")
    return [f"{name}: {text}, left out."]


def _oddities(
    image_rows: np.ndarray,
    class_ids: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    index: CocoIndex,
    name: str,
) -> list[str]:
    """Return what a reader should know of scores, copies and images without a detection."""
    notes = []
    if len(scores) and (scores.max() > 1 or scores.min() < 0):
        percent = ", perhaps in percent" if 1 < scores.max() <= 100 and scores.min() >= 0 else ""
        notes.append(
            f"Scores of {name} run from {scores.min():g} to {scores.max():g}{percent}, not 0 to 1: they rank the "
            "detections, thresholds are in their unit, and calibration is not measured."
        )
    if len(scores) > 1 and scores.max() == scores.min():
        notes.append(f"All scores of {name} are {scores[0]:g}: AP depends on the order of its entries.")
    columns = np.column_stack([image_rows, class_ids, boxes])
    copies = len(columns) - len(np.unique(columns, axis=0)) if len(columns) else 0
    if copies:
        notes.append(
            f"{counted(copies, 'detection')} of {name} repeat another of the same image, class and box; each "
            "counts as one more, wrong where the object is found already."
        )
    annotated = np.unique(index.written.image_rows) if index.written else np.flatnonzero(np.diff(index.offsets))
    without = len(np.setdiff1d(annotated, image_rows))
    if len(scores) and without > MOST * len(annotated):
        notes.append(
            f"{without:,} of the {counted(len(annotated), 'image')} with objects have no detection in {name}; "
            "their objects count as missed. Was it made on another split, or on a part of this one?"
        )
    return notes


def _id_text(value: int | str | None, add: int = 0) -> str | None:
    """Return an id as text, whole numbers in one spelling, with a number added to those."""
    if isinstance(value, str) and not _is_number(value.strip()):
        return value.strip() if not add else None
    return None if value is None else str(int(value) + add)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _unique(pairs: Iterable[tuple[Hashable, int]]) -> dict[Hashable, int]:
    """Return a row for every key; -1 where several rows have it."""
    rows: dict[Hashable, int] = {}
    for key, row in pairs:
        rows[key] = -1 if key in rows else row
    return rows


def _rows(rows: Mapping[Any, int], keys: Iterable[Hashable]) -> np.ndarray:
    return np.array([rows.get(key, -1) for key in keys], dtype=np.int64)


def _shown(key: object) -> str:
    value = (key.file_name or key.image_id) if isinstance(key, ImageKey) else key
    return repr(value) if isinstance(value, str) else str(value)
