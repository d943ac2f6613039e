"""Where a detector fails, in lists and pictures; see :func:`find_failures`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from detrkit.errors import UsageError
from detrkit.evaluation.error_types import FOREGROUND_IOU, ErrorTypes
from detrkit.evaluation.failures.causes import Cause, Question, find_causes
from detrkit.evaluation.failures.crops import ReadImage, Spot, draw_spots
from detrkit.evaluation.failures.entries import (
    KINDS,
    MISSED,
    SIZES,
    FailureTable,
    ImageResult,
    failure_table,
    found_objects,
    image_results,
    right_detections,
    sizes_of,
)
from detrkit.evaluation.failures.label_issues import REASONS, Suspect, find_suspects
from detrkit.evaluation.failures.nearby_objects import NearPairs, near_pairs
from detrkit.evaluation.failures.properties import (
    PIXEL_PROPERTIES,
    Property,
    box_properties,
    crowding_properties,
    measure_pixels,
    pixel_properties,
)
from detrkit.evaluation.matching import Matches
from detrkit.visual.page import Picture
from detrkit.visual.text import shortened

PICTURES_OF_KIND = 24
PICTURES_OF_REASON = 12
PIXEL_IMAGES = 500
"""Images whose brightness and the like are measured; of more, a random part."""

_MOST_OF_IMAGE = 3  # pictures of a kind, so that one bad image does not fill the gallery
_MOST_PIXELS = 400e6  # that are measured in all, so that large images do not take minutes
_NAME_LENGTH = 40


@dataclasses.dataclass(frozen=True)
class Failure:
    """One failure.

    Args:
        number: Its row of :attr:`Failures.table`, 0 for the worst.
        kind: Of ``KINDS``.
        image_row: Row of the truth's ``image_ids``.
        image_id: The data set's id.
        file_name: As the data set writes it.
        class_id: Of the detection; of a missed object its own.
        other_class_id: Of the object that explains a false positive; of a missed object, of the detection nearest.
        score: Of the detection.
        iou: Of detection and object.
        size: Of the object, or of the detection where there is none.
        found_xywh: The detection.
        object_xywh: The object.
        severity: See :class:`FailureTable`.
    """

    number: int
    kind: str
    image_row: int
    image_id: int
    file_name: str
    class_id: int
    other_class_id: int | None
    score: float | None
    iou: float | None
    size: str
    found_xywh: np.ndarray | None
    object_xywh: np.ndarray | None
    severity: float


@dataclasses.dataclass(frozen=True)
class Failures:
    """Everything that goes wrong at a score threshold.

    Args:
        matches: What it was found from.
        file_names: Of each row of the truth's ``image_ids``.
        score: Detections below are not shown, so that they are no false positives and find nothing.
        table: All failures as columns, worst first.
        images: All measured images, worst first.
        suspects: Labels to look at again, most suspect first.
        causes: What goes with failure beyond chance, most telling first.
        pictures: Of the worst failures of each kind: row of the table and picture, worst first.
        suspect_pictures: Of the first suspects of each reason: place in ``suspects`` and picture.
        unreadable: Images that were wanted and could not be read.
        pixel_images: Images whose pixels were measured.
    """

    matches: Matches
    file_names: Sequence[str]
    score: float
    table: FailureTable
    images: tuple[ImageResult, ...]
    suspects: tuple[Suspect, ...]
    causes: tuple[Cause, ...]
    pictures: tuple[tuple[int, Picture], ...] = ()
    suspect_pictures: tuple[tuple[int, Picture], ...] = ()
    unreadable: int = 0
    pixel_images: int = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the data set, by class id."""
        return self.matches.truth.class_map.names

    @property
    def counts(self) -> Mapping[str, int]:
        """Failures of each kind."""
        numbers = np.bincount(self.table.kinds, minlength=len(KINDS)).tolist()
        return dict(zip(KINDS, numbers, strict=True))

    def entry(self, number: int) -> Failure:
        """A failure with all that is known of it."""
        table, truth, found = self.table, self.matches.truth, self.matches.found
        kind, image_row = int(table.kinds[number]), int(table.image_rows[number])
        detection, annotation = int(table.detections[number]), int(table.objects[number])
        found_class = int(found.class_ids[detection]) if detection >= 0 else None
        object_class = int(truth.class_ids[annotation]) if annotation >= 0 else None
        class_id, other = (object_class, found_class) if kind == MISSED else (found_class, object_class)
        assert class_id is not None
        found_xywh = found.boxes_xywh[detection] if detection >= 0 else None
        area = truth.area[annotation] if annotation >= 0 else found.boxes_xywh[detection, 2:].prod()
        return Failure(
            number=number,
            kind=KINDS[kind],
            image_row=image_row,
            image_id=int(truth.image_ids[image_row]),
            file_name=self.file_names[image_row],
            class_id=class_id,
            other_class_id=other,
            score=float(found.scores[detection]) if detection >= 0 else None,
            iou=float(table.iou[number]) if np.isfinite(table.iou[number]) else None,
            size=SIZES[int(sizes_of(area))],
            found_xywh=found_xywh,
            object_xywh=truth.boxes_xywh[annotation] if annotation >= 0 else None,
            severity=float(table.severity[number]),
        )

    def worst(self, count: int, kind: str | None = None) -> list[Failure]:
        """The worst failures, of all kinds or of one."""
        rows = (
            np.arange(len(self.table)) if kind is None else np.flatnonzero(self.table.kinds == KINDS.index(kind))
        )
        return [self.entry(number) for number in rows[:count].tolist()]

    def describe(self, failure: Failure) -> str:
        """A failure in a few words: classes, score, overlap."""
        name = shortened(self.class_names[failure.class_id], _NAME_LENGTH)
        other = "" if failure.other_class_id is None else self.class_names[failure.other_class_id]
        other = shortened(other, _NAME_LENGTH)
        if failure.kind == "missed":
            if failure.score is None:
                return f"{name}, nothing is near"
            same = failure.other_class_id == failure.class_id
            if same and failure.score < self.score and (failure.iou or 0) >= FOREGROUND_IOU:
                return f"{name}, found with score {failure.score:.2f} only, IoU {failure.iou:.2f}"
            return f"{name}, nearest is {other} {failure.score:.2f}, IoU {failure.iou:.2f}"
        what = {
            "classification": f"is {other}, IoU {failure.iou or 0:.2f}",
            "localization": f"IoU {failure.iou or 0:.2f} only",
            "both": f"is {other}, IoU {failure.iou or 0:.2f} only",
            "duplicate": f"was found already, IoU {failure.iou or 0:.2f}",
            "background": "nothing is labelled here",
        }
        return f"{name} {failure.score:.2f}, {what[failure.kind]}"


def find_failures(
    matches: Matches,
    errors: ErrorTypes,
    file_names: Sequence[str],
    read_image: ReadImage | None = None,
    *,
    score: float,
    pictures: int = PICTURES_OF_KIND,
    suspect_pictures: int = PICTURES_OF_REASON,
    pixel_images: int = PIXEL_IMAGES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Failures:
    """List what goes wrong at a score threshold, the labels to blame, and what failure goes with.

    Args:
        matches: Of all detections, whatever their score.
        errors: Their kinds.
        file_names: Of each row of the truth's ``image_ids``.
        read_image: Gives an image by that row; without it, no pictures and nothing about pixels.
        score: Detections below are not shown; such as the threshold of the best F1.
        pictures: Of each kind of failure, at most.
        suspect_pictures: Of each reason to suspect a label, at most.
        pixel_images: Images to measure brightness, contrast and sharpness on, at most.
        seed: Of the choice of those images.
        progress: Called with images read and images to read.

    Raises:
        UsageError: Names are not one for each image.
    """
    truth = matches.truth
    if len(file_names) != len(truth.image_ids):
        raise UsageError(f"find_failures got {len(file_names)} file names, expected {len(truth.image_ids)}")
    near = near_pairs(truth.image_rows, truth.boxes_xywh)
    table = failure_table(matches, errors, score)
    suspects = find_suspects(matches, file_names, near)
    failures = Failures(
        matches=matches,
        file_names=file_names,
        score=score,
        table=table,
        images=image_results(matches, table, file_names, score),
        suspects=tuple(suspects),
        causes=(),
    )
    objects = np.flatnonzero(matches.measured)
    shown = np.flatnonzero((matches.found.scores >= score) & ~matches.ignored[0])
    pixels: list[list[Property]] = [[], []]
    if read_image is not None:
        failures, pixels = _look(
            failures, objects, shown, read_image, (pictures, suspect_pictures, pixel_images), seed, progress
        )
    questions = _questions(matches, score, objects, shown, near, pixels)
    return dataclasses.replace(failures, causes=tuple(find_causes(questions)))


def _questions(
    matches: Matches,
    score: float,
    objects: np.ndarray,
    shown: np.ndarray,
    near: NearPairs,
    pixels: Sequence[Sequence[Property]],
) -> list[Question]:
    """What the missed objects have in common, and what the wrong ones of the shown detections."""
    truth, found, counted = matches.truth, matches.found, matches.measured
    images, class_ids, boxes = truth.image_rows[objects], truth.class_ids[objects], truth.boxes_xywh[objects]
    of_objects = [
        *box_properties(truth, images, class_ids, boxes, counted),
        *crowding_properties(near, objects, counted),
        *pixels[0],
    ]
    missed = Question("missed objects", ~found_objects(matches, score)[objects], images, of_objects)
    images, class_ids, boxes = found.image_rows[shown], found.class_ids[shown], found.boxes_xywh[shown]
    of_detections = [*box_properties(truth, images, class_ids, boxes, counted), *pixels[1]]
    wrong = Question("wrong detections", ~right_detections(matches, score)[shown], images, of_detections)
    return [missed, wrong]


def _look(
    failures: Failures,
    objects: np.ndarray,
    shown: np.ndarray,
    read_image: ReadImage,
    limits: tuple[int, int, int],
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[Failures, list[list[Property]]]:
    """All that needs images: pictures, and what the pixels of objects and detections have to do with failure."""
    matches = failures.matches
    truth, found = matches.truth, matches.found
    chosen = _worst_of_each(failures.table.kinds, failures.table.image_rows, limits[0])
    reasons = np.array([REASONS.index(suspect.reason) for suspect in failures.suspects], dtype=np.int64)
    places = np.array([suspect.image_row for suspect in failures.suspects], dtype=np.int64)
    chosen_suspects = _worst_of_each(reasons, places, limits[1])
    spots = [_spot(failures, failures.entry(number)) for number in chosen]
    spots += [_suspect_spot(failures, failures.suspects[number]) for number in chosen_suspects]
    values = [np.full((len(rows), len(PIXEL_PROPERTIES)), np.nan) for rows in (objects, shown)]
    boxes = (truth.boxes_xywh[objects], found.boxes_xywh[shown])
    rows = (truth.image_rows[objects], found.image_rows[shown])  # both ascending
    measured: set[int] = set()

    def measure(row: int, image: np.ndarray) -> None:
        measured.add(row)
        for images, image_boxes, into in zip(rows, boxes, values, strict=True):
            first, last = np.searchsorted(images, (row, row + 1))
            into[first:last] = measure_pixels(image, image_boxes[first:last])

    sample = _sample(matches, limits[2], seed)
    drawn, unreadable = draw_spots(spots, matches, failures.score, read_image, measure, sample, progress)
    pictures = tuple(zip(chosen, drawn[: len(chosen)], strict=True))
    suspect_pictures = tuple(zip(chosen_suspects, drawn[len(chosen) :], strict=True))
    failures = dataclasses.replace(
        failures,
        pictures=pictures,
        suspect_pictures=suspect_pictures,
        unreadable=unreadable,
        pixel_images=len(measured),
    )
    return failures, [pixel_properties(column) for column in values]


def _worst_of_each(groups: np.ndarray, image_rows: np.ndarray, count: int) -> list[int]:
    """Places of the first ``count`` of each group, few of one image, in the order they have."""
    chosen: list[int] = []
    for group in np.unique(groups):
        taken: dict[int, int] = {}
        left = count
        for number in np.flatnonzero(groups == group).tolist():
            image_row = int(image_rows[number])
            if left and taken.get(image_row, 0) < _MOST_OF_IMAGE:
                taken[image_row] = taken.get(image_row, 0) + 1
                chosen.append(number)
                left -= 1
            if not left:
                break
    return sorted(chosen)


def _sample(matches: Matches, count: int, seed: int) -> list[int]:
    """Rows of images to measure pixels on."""
    rows: np.ndarray = np.random.default_rng(seed).permutation(matches.rows)[:count]
    pixels = np.cumsum(matches.truth.sizes_hw[rows].prod(axis=1))
    chosen: list[int] = rows[: max(1, int(np.searchsorted(pixels, _MOST_PIXELS)))].tolist()
    return chosen


def _spot(failures: Failures, failure: Failure) -> Spot:
    file_name = shortened(failure.file_name, _NAME_LENGTH)
    return Spot(
        failure.image_row,
        _boxes(failure.object_xywh),
        _boxes(failure.found_xywh),
        f"{failure.kind}: {failures.describe(failure)} · {file_name}",
    )


def _suspect_spot(failures: Failures, suspect: Suspect) -> Spot:
    file_name = shortened(suspect.file_name, _NAME_LENGTH)
    return Spot(
        suspect.image_row,
        _boxes(suspect.box_xywh),
        _boxes(suspect.proposed_box_xywh),
        f"{suspect.reason}: {shortened(suspect.explanation, 3 * _NAME_LENGTH)} · {file_name}",
    )


def _boxes(box: Sequence[float] | np.ndarray | None) -> np.ndarray:
    return np.zeros((0, 4)) if box is None else np.asarray(box, dtype=np.float64).reshape(1, 4)
