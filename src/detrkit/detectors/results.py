"""Files of detections in COCO's result format, read and written.

Shapes: D detections of all images, K of one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from detrkit.classes import ClassMap
from detrkit.data.split import Split
from detrkit.data.table import positions_of
from detrkit.detectors.interop import sv
from detrkit.detectors.split_evaluator import Found, ImageChange, Progress
from detrkit.detectors.stages import Stages
from detrkit.errors import DataError, UsageError, listed
from detrkit.evaluation.coco import MAX_DETECTIONS, ImageResults
from detrkit.files import atomic_file

KIND = "results"
EXPECTED = 'a list of {"image_id": 139, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}'


class _Entry(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


class Results(NamedTuple):
    """Detections of a file as columns.

    image_ids: int64 ``[D]``, ascending; entries of an image as in the file. category_ids: int64 ``[D]``.
    boxes_xywh: float64 ``[D, 4]``, pixels. scores: float64 ``[D]``.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes_xywh: np.ndarray
    scores: np.ndarray


class ResultsFile:
    """A file of detections. It holds ids and no names, so that its classes are those of the split it is bound to.

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

    def bind(self, split: Split, /) -> ResultsFile:
        """Return the same file with the classes of a split.

        Raises:
            DataError: The file speaks of images or categories that the split does not have.
        """
        _check_known(self.path, "image id", self.results.image_ids, split.index.image_ids, split)
        category_ids = np.array(split.index.class_map.category_ids, dtype=np.int64)
        _check_known(self.path, "category id", self.results.category_ids, category_ids, split)
        bound = copy.copy(self)
        bound.class_map = split.index.class_map
        return bound

    def detect(
        self, split: Split, *, progress: Progress | None = None, change: ImageChange | None = None
    ) -> Found:
        """Give the file's detections of every image of the split, to the last digit."""
        classes = self.bind(split).class_map
        results = self.results
        class_ids = positions_of(results.category_ids, np.array(classes.category_ids, dtype=np.int64))
        begins = np.searchsorted(results.image_ids, split.index.image_ids, side="left").tolist()
        ends = np.searchsorted(results.image_ids, split.index.image_ids, side="right").tolist()
        for done, (image_id, begin, end) in enumerate(
            zip(split.index.image_ids.tolist(), begins, ends, strict=True), start=1
        ):
            part = slice(begin, end)
            yield image_id, ImageResults(results.boxes_xywh[part], results.scores[part], class_ids[part])
            if progress is not None and (done % 1_000 == 0 or done == len(begins)):
                progress(done)


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
    try:
        entries = msgspec.json.decode(content, type=list[_Entry])
    except msgspec.DecodeError as error:  # of which a ValidationError is one
        raise DataError(_explanation(path, content, error)) from error
    boxes = np.array([entry.bbox for entry in entries], dtype=np.float64).reshape(-1, 4)
    scores = np.array([entry.score for entry in entries], dtype=np.float64)
    bad = np.flatnonzero((boxes[:, 2:] < 0).any(axis=1))
    if len(bad):
        raise DataError(
            f"{path}: detection {bad[0]} has width {boxes[bad[0], 2]:g} and height {boxes[bad[0], 3]:g}, expected "
            f"0 or more ({len(bad)} such in all); bbox is [x, y, width, height], not corners"
        )
    image_ids = np.array([entry.image_id for entry in entries], dtype=np.int64)
    category_ids = np.array([entry.category_id for entry in entries], dtype=np.int64)
    order = np.argsort(image_ids, kind="stable")
    return Results(image_ids[order], category_ids[order], boxes[order], scores[order])


def is_results_file(text: str) -> bool:
    """Return True if a source names a file of detections, by its name alone."""
    return Path(text).suffix.lower() == ".json"


def _explanation(path: Path, content: bytes, error: msgspec.DecodeError) -> str:
    """Say why a file cannot be used; slow, but nothing is lost by then."""
    # the file as a whole
    try:
        found: Any = json.loads(content)
    except ValueError as json_error:
        return f"{path} is not valid JSON, perhaps cut off: {json_error}"
    if isinstance(found, dict):
        keys = listed(sorted(found), 6)
        return f"{path} holds one object with {keys or 'nothing'}; expected {EXPECTED}, as written by detrkit eval"
    if not isinstance(found, list):
        return f"{path} holds a {type(found).__name__}; expected {EXPECTED}"
    # the first entry that cannot be used
    for number, entry in enumerate(found):
        if not isinstance(entry, dict):
            return f"{path}: entry {number} is a {type(entry).__name__}; expected {EXPECTED}"
        if "image_id" not in entry and "file_name" in entry:
            return (
                f"{path}: entry {number} has file_name and no image_id, as detrkit predict writes it; detections "
                "for measuring come from detrkit eval MODEL --data DATA --out DIR, as detections.json"
            )
        missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in entry]
        if missing:
            return f"{path}: entry {number} has no {', '.join(missing)}; expected {EXPECTED}"
        box = entry["bbox"] if isinstance(entry["bbox"], list) else []
        numbers = [value for value in (*box, entry["score"]) if isinstance(value, int | float)]
        if not np.isfinite(numbers).all():
            return f"{path}: entry {number} has a box or score that is NaN or infinite; expected plain numbers"
    return f"{path}: {error}; expected {EXPECTED}"


def _check_known(path: Path, what: str, found: np.ndarray, known: np.ndarray, split: Split) -> None:
    unknown = np.setdiff1d(found, known)
    if len(unknown):
        raise DataError(
            f"{path}: {len(unknown)} {what}s are not in {split.files.annotations}: {listed(unknown.tolist(), 5)}; "
            f"expected detections on that split, with its own {what}s"
        )


def to_coco(detections: sv.Detections, image_id: int | None = None) -> list[dict[str, Any]]:
    """Convert detections of :meth:`Detector.predict` to COCO's result format, best first.

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
    return [
        {**key, "category_id": category_id, "bbox": corner + side, "score": score}
        for category_id, corner, side, score in zip(*columns, strict=True)
    ]


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
