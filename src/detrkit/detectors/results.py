"""Files of detections in COCO's result format, read and written.

Shapes: D detections of all images, K of one.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from hotcoco import mask as rle_masks

from detrkit.classes import ClassMap, match_classes
from detrkit.data.formats.base import decode_text
from detrkit.data.formats.panoptic_write import panoptic_categories
from detrkit.data.index import CocoIndex
from detrkit.data.split import Split
from detrkit.detectors.encode import has_masks
from detrkit.detectors.interop import sv
from detrkit.detectors.match_results import ImageKey, MatchedResults, Results, match_results
from detrkit.detectors.result_masks import give_masks, mask_box, read_panoptic_results
from detrkit.detectors.split_evaluator import Found, ImageChange, Progress
from detrkit.detectors.stages import Stages
from detrkit.errors import DataError, UsageError, listed
from detrkit.evaluation.coco import MAX_DETECTIONS, BoxEvaluator, ImageResults
from detrkit.evaluation.panoptic import PanopticMetrics, measure_files
from detrkit.evaluation.truth import as_rle, ground_truth_from_index
from detrkit.files import atomic_file, free_name
from detrkit.masks import PanopticSegments, encode_mask, segments_info
from detrkit.visual.drawing import save_png

KIND = "results"
PANOPTIC_FILE = "panoptic.json"
EXPECTED = 'a list of {"image_id": 139, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}'


MOST_PIXELS = 1e9
OURS = re.compile(rb'\[\n\{"image_id":[^ ]')
"""Beginning of the files that ``eval`` writes, of which nothing has to be guessed."""


class _Entry(msgspec.Struct, gc=False):
    category_id: int | str
    score: float
    bbox: tuple[float, float, float, float] | None = None
    image_id: int | str | None = None
    file_name: str | None = None
    segmentation: Any = None


class ResultsFile:
    """A file of detections, or of panoptic pictures with a folder of PNG files.

    It holds ids and no names, so that its classes are those of the split it is bound to.

    Args:
        path: The file.

    Raises:
        DataError: It is not in COCO's result format.
    """

    kind = KIND

    def __init__(self, path: str | Path):
        self.name = str(path)
        self.path = Path(path)
        self.results = read_results(self.path)
        self.class_map = ClassMap((), ())
        self.stages: Stages | None = None
        self.max_detections = MAX_DETECTIONS
        self.settings = ""
        self.notes: tuple[str, ...] = ()
        self.has_masks, self.has_stuff = len(self.results.masks) > 0, self.results.is_panoptic
        self._bound: tuple[CocoIndex, MatchedResults] | None = None

    def bind(self, split: Split, /) -> ResultsFile:
        """Return the same file with the classes of a split, and notes on how its entries were understood.

        Raises:
            DataError: Most of the file is of images or categories that the split does not have.
        """
        if self._bound is not None and self._bound[0] is split.index:
            return self
        bound = copy.copy(self)
        matched = match_results(self.results, split, self.path.name)
        bound._bound, bound.class_map, bound.notes = (split.index, matched), split.index.class_map, matched.notes
        return bound

    def detect(
        self, split: Split, *, progress: Progress | None = None, change: ImageChange | None = None
    ) -> Found:
        """Give the file's detections of every image of the split, to the last digit."""
        bound = self.bind(split)._bound
        assert bound is not None
        index, found = bound
        ends = np.searchsorted(found.image_rows, np.arange(len(index) + 1)).tolist()
        for row, (begin, end) in enumerate(itertools.pairwise(ends)):
            part = slice(begin, end)
            results = ImageResults(found.boxes_xywh[part], found.scores[part], found.class_ids[part])
            if self.has_masks and has_masks(index):
                masks = [self.results.masks[place] for place in found.places[part].tolist()]
                height, width = index.sizes_hw[row].tolist()
                results = give_masks(results, masks, (height, width), self.name, self.results.is_panoptic)
            yield int(index.image_ids[row]), results
            if progress is not None and ((row + 1) % 1_000 == 0 or row + 1 == len(index)):
                progress(row + 1)

    def measure_files(self, split: Split) -> PanopticMetrics:
        """Measure panoptic pictures by :func:`detrkit.evaluation.panoptic.measure_files`.

        Raises:
            ValueError: As there.
            OSError: As there.
        """
        bound = self.bind(split)._bound
        assert bound is not None
        index, found = bound
        truth = ground_truth_from_index(index)
        rows = np.searchsorted(truth.image_ids, index.image_ids[found.image_rows]).tolist()
        classes = match_classes(index.class_map, truth.class_map)[found.class_ids].tolist()
        masks = (self.results.masks[place] for place in found.places.tolist())
        files = ((str(file), number) for file, number, _ in masks)
        return measure_files(truth, zip(rows, classes, files, strict=True))


def read_results(path: Path) -> Results:
    """Read a COCO result file; half a million detections take about a second.

    Raises:
        UsageError: There is no such file.
        DataError: It is not in COCO's result format, or a value cannot be used.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"no file of detections at {path}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    notes: tuple[str, ...] = ()
    if b'"segments_info"' in content:
        return read_panoptic_results(path, content)
    try:
        entries = msgspec.json.decode(content, type=list[_Entry])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        entries, converted = _read_slowly(path, content)
        if converted:
            notes = (f"{converted:,} entries of {path.name} hold numbers as text; these were read as numbers.",)
    nameless = [number for number, entry in enumerate(entries) if entry.image_id is None and not entry.file_name]
    if nameless:
        raise DataError(f"{path}: entry {nameless[0]} has no image_id ({len(nameless)} such); expected {EXPECTED}")
    masks = [entry.segmentation or None for entry in entries]
    without = masks.count(None)
    if 0 < without < len(masks):
        notes += (
            f"{without:,} of {len(masks):,} entries of {path.name} have no mask: as masks, these find nothing.",
        )
    boxless = [number for number, entry in enumerate(entries) if entry.bbox is None and masks[number] is None]
    if boxless:
        raise DataError(f"{path}: entry {boxless[0]} has no bbox ({len(boxless)} such); expected {EXPECTED}")
    given = [mask_box(entry.segmentation, str(path)) if entry.bbox is None else entry.bbox for entry in entries]
    boxes = np.array(given, dtype=np.float64).reshape(-1, 4)
    scores = np.array([entry.score for entry in entries], dtype=np.float64)
    bad = np.flatnonzero((boxes[:, 2:] < 0).any(axis=1) | (np.abs(boxes) > MOST_PIXELS).any(axis=1))
    if len(bad):
        raise DataError(
            f"{path}: detection {bad[0]} has width {boxes[bad[0], 2]:g} and height {boxes[bad[0], 3]:g} at "
            f"{boxes[bad[0], 0]:g}, {boxes[bad[0], 1]:g}, expected 0 or more, and pixels ({len(bad)} such in "
            "all); bbox is [x, y, width, height]"
        )
    # each image and category that is named, once
    images: dict[ImageKey, int] = {}
    categories: dict[int | str, int] = {}
    of_image = [images.setdefault(ImageKey(entry.image_id, entry.file_name), len(images)) for entry in entries]
    of_category = [categories.setdefault(entry.category_id, len(categories)) for entry in entries]
    return Results(
        image_keys=list(images),
        images=np.array(of_image, dtype=np.int64),
        category_keys=list(categories),
        categories=np.array(of_category, dtype=np.int64),
        boxes=boxes,
        scores=scores,
        is_ours=OURS.match(content) is not None,
        notes=notes,
        masks=masks if without < len(masks) else (),
    )


def is_results_file(text: str) -> bool:
    """Return True if a source names a file of detections, by its name alone."""
    return Path(text).suffix.lower() == ".json"


def _read_slowly(path: Path, content: bytes) -> tuple[list[_Entry], int]:
    """Read what is not quite as COCO has it, and count entries with numbers as text; or say what is wrong."""
    # the file as a whole
    try:
        found: Any = json.loads(decode_text(content, path))
    except (ValueError, RecursionError) as error:
        is_cut = isinstance(error, json.JSONDecodeError) and error.pos >= len(error.doc.rstrip()) - 1
        raise DataError(f"{path} is not valid JSON{', perhaps cut off' if is_cut else ''}: {error}") from error
    if isinstance(found, dict):
        keys = listed(sorted(found), 6)
        raise DataError(
            f"{path} holds one object with {keys or 'nothing'}; expected {EXPECTED}, as written by detrkit eval"
        )
    if not isinstance(found, list):
        raise DataError(f"{path} holds a {type(found).__name__}; expected {EXPECTED}")
    # entry by entry
    entries, converted = [], 0
    for number, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: entry {number} is a {type(entry).__name__}; expected {EXPECTED}")
        has_mask = bool(entry.get("segmentation"))
        missing = [key for key in ("category_id", "bbox", "score")[:: 1 + has_mask] if entry.get(key) is None]
        if "image_id" not in entry and "file_name" not in entry:
            missing.insert(0, "image_id")
        if missing:
            raise DataError(f"{path}: entry {number} has no {', '.join(missing)}; expected {EXPECTED}")
        if has_mask and entry.get("bbox") is None:
            entry["bbox"] = mask_box(entry["segmentation"], f"{path}: entry {number}")
        box = entry["bbox"] if isinstance(entry["bbox"], list) else []
        values = [one for value in (*box, entry["score"]) if (one := _number(value)) is not None]
        if len(box) != 4 or len(values) != 5:
            got = f"bbox {entry['bbox']!r} and score {entry['score']!r}"
            raise DataError(
                f"{path}: entry {number} has {got}, expected four numbers and one; expected {EXPECTED}"
            )
        if not np.isfinite(np.array(values, dtype=np.float64)).all():
            raise DataError(
                f"{path}: entry {number} has a box or score that is NaN or infinite; expected plain numbers: "
                "leave such detections out, and look at the model that gave them"
            )
        converted += any(isinstance(value, str) for value in (*box, entry["score"]))
        ids = [_whole(entry.get(key)) for key in ("category_id", "image_id")]
        x, y, width, height, score = values
        try:
            key = msgspec.convert((*ids, entry.get("file_name")), tuple[int | str, int | str | None, str | None])
        except msgspec.ValidationError as error:
            raise DataError(f"{path}: entry {number}: {error}; expected {EXPECTED}") from error
        entries.append(_Entry(key[0], score, (x, y, width, height), key[1], key[2], entry.get("segmentation")))
    return entries, converted


def _number(value: Any) -> float | None:
    """Return a number, or a text that reads as one; None for anything else."""
    try:
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None


def _whole(value: Any) -> Any:
    """Return a whole number that is written as a fraction, such as 17.0; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def to_coco(detections: sv.Detections, image_id: int | None = None) -> list[dict[str, Any]]:
    """Convert detections of :meth:`Detector.predict` to COCO's result format, best first, their masks as RLE.

    Args:
        detections: Detections of one image.
        image_id: The data set's id of the image. Without one, which pycocotools cannot read, each entry
            carries ``file_name`` (the source) instead, so that entries can be told apart.

    Raises:
        UsageError: The detections carry no category ids, so they do not come from ``Detector.predict``.
    """
    if len(detections) == 0:
        return []
    if "category_id" not in detections.data:
        raise UsageError('the detections have no data["category_id"]; expected what Detector.predict returned')
    key = {"file_name": str(detections.metadata.get("source", ""))} if image_id is None else {"image_id": image_id}
    boxes = np.asarray(detections.xyxy, dtype=np.float32)
    categories, scores = np.asarray(detections.data["category_id"]), np.asarray(detections.confidence)
    sides = boxes[:, 2:] - boxes[:, :2]
    columns = (categories.tolist(), boxes[:, :2].tolist(), sides.tolist(), scores.tolist())
    entries = [
        {**key, "category_id": category_id, "bbox": corner + side, "score": score}
        for category_id, corner, side, score in zip(*columns, strict=True)
    ]
    if detections.mask is not None:
        for entry, mask in zip(entries, np.asarray(detections.mask), strict=True):
            entry["segmentation"] = encode_mask(mask)
    return entries


def panoptic_entry(
    segments: PanopticSegments, class_map: ClassMap, file_name: str, image_id: int | str
) -> dict[str, Any]:
    """Return the annotation of a panoptic picture, as a file of COCO panoptic has it, scores besides.

    Args:
        segments: The picture.
        class_map: Classes of its segments.
        file_name: PNG file with :meth:`detrkit.masks.PanopticSegments.colors`.
        image_id: The data set's id of the image, or its name.
    """
    infos = segments_info(segments, class_map.category_ids)
    for info, score in zip(infos, segments.scores.tolist(), strict=True):
        info["score"] = score
    return {"image_id": image_id, "file_name": file_name, "segments_info": infos}


def write_panoptic(path: Path, annotations: Sequence[Mapping[str, Any]], class_map: ClassMap) -> None:
    """Write the JSON file of panoptic pictures, with the categories of a model."""
    categories = panoptic_categories(class_map)
    images = [{"id": entry["image_id"], "file_name": entry["image_id"]} for entry in annotations]
    with atomic_file(path) as file:
        json.dump({"images": images, "annotations": list(annotations), "categories": categories}, file)


def write_panoptic_results(path: Path, evaluator: BoxEvaluator, file_names: Sequence[str]) -> None:
    """Write the panoptic pictures that were measured: the JSON file, and PNG files in a folder of its name.

    Args:
        path: The JSON file.
        evaluator: Evaluator that holds them.
        file_names: File name of each image, in its order.
    """
    truth, rows, columns, rle = evaluator.segments()
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    ends = np.searchsorted(columns[:, 0], np.arange(1, len(rows) + 2)).tolist()
    names: list[str] = []
    annotations = []
    for row, (start, stop) in zip(rows.tolist(), itertools.pairwise(ends), strict=True):
        names.append(free_name(Path(file_names[row]).stem, names))
        ids = np.zeros(truth.sizes_hw[row], dtype=np.int32)
        encoded = as_rle([] if rle is None else rle[start:stop], truth.sizes_hw[[row] * (stop - start)])
        for number, mask in enumerate(encoded, start=1):
            ids[rle_masks.decode(mask) > 0] = number
        class_ids, scores = columns[start:stop, 6].astype(np.int64) - 1, columns[start:stop, 5]
        segments = PanopticSegments(
            ids, class_ids, scores, np.bincount(ids.ravel(), minlength=stop - start + 1)[1:]
        )
        save_png(folder / f"{names[-1]}.png", segments.colors())
        key = truth.image_keys[row] if truth.image_keys else {"image_id": int(truth.image_ids[row])}
        image_id = key.get("file_name", key["image_id"])
        annotations.append(panoptic_entry(segments, truth.class_map, f"{names[-1]}.png", image_id))
    write_panoptic(path, annotations, truth.class_map)


def write_predictions(path: str | Path, predictions: Iterable[tuple[int | None, sv.Detections]]) -> int:
    """Write detections of many images as one COCO result list and return the number of detections.

    Args:
        path: The JSON file; it appears, whole, when the last image is done.
        predictions: Image id (or None, see :func:`to_coco`) and detections of each image, read one by one.
    """
    written = 0
    with atomic_file(Path(path)) as file:
        file.write("[")
        for image_id, detections in predictions:
            for entry in to_coco(detections, image_id):
                file.write(",\n" if written else "\n")
                file.write(json.dumps(entry))
                written += 1
        file.write("\n]\n")
    return written
