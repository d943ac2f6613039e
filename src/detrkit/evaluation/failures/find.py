"""Failures of a detector in lists and pictures; see :func:`find_failures`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from detrkit.errors import UsageError
from detrkit.evaluation.error_types import FOREGROUND_IOU, ErrorTypes
from detrkit.evaluation.failures.causes import Cause, Question, find_causes
from detrkit.evaluation.failures.crops import FOUND_COLOR, LABEL_COLOR, ReadImage, Spot, draw_spots
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
    value_at,
)
from detrkit.evaluation.failures.label_issues import REASONS, LabelIssue, find_label_issues
from detrkit.evaluation.failures.properties import (
    PIXEL_PROPERTIES,
    box_properties,
    crowding_properties,
    measure_pixels,
    near_pairs,
    pixel_properties,
)
from detrkit.evaluation.matching import Found, Matches
from detrkit.evaluation.truth import CocoTruth, as_rle
from detrkit.files import read_facts
from detrkit.visual.page import Picture
from detrkit.visual.text import shortened

PICTURES_OF_KIND = 24
PICTURES_OF_REASON = 12
PIXEL_IMAGES = 500
"""Images whose brightness and the like are measured; of more, a random part."""

_MOST_OF_IMAGE = 3  # pictures of a kind, so that one bad image does not fill the gallery
_MOST_PIXELS = 400e6  # that are measured in all, so that large images do not take minutes
_NAME_LENGTH = 40
_DESCRIPTIONS: Mapping[str, str] = read_facts(__file__)


@dataclasses.dataclass(frozen=True)
class Failure:
    """One failure; what there is none of is None.

    Args:
        number: Row of :attr:`Failures.table`, 0 for the worst.
        kind: One of ``KINDS``.
        image_row: Row of the truth's ``image_ids``.
        image_id: The data set's id.
        file_name: File name as the data set writes it.
        class_id: Class of the detection; of a missed object its own.
        other_class_id: Class of the object that explains a false positive; of a missed object, of the detection
            nearest.
        score: Score of the detection.
        iou: IoU of detection and object.
        size: Size of the object, or of the detection where there is none.
        found_xywh: Box of the detection.
        object_xywh: Box of the object.
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
        matches: Matches that it was found from.
        file_names: File name of each row of the truth's ``image_ids``.
        score: Detections below are not shown, so that they are no false positives and find nothing.
        table: All failures as columns, worst first.
        images: All measured images, worst first.
        label_issues: Labels to look at again, most suspect first.
        causes: Properties that go with failure, surest first.
        pictures: Pictures of the worst failures of each kind, with their rows of the table, worst first.
        issue_pictures: Pictures of the first issues of each reason, with their places in ``label_issues``.
        unreadable: Images that were wanted and could not be read.
        pixel_images: Images whose pixels were measured.
    """

    matches: Matches
    file_names: Sequence[str]
    score: float
    table: FailureTable
    images: tuple[ImageResult, ...]
    label_issues: tuple[LabelIssue, ...]
    causes: tuple[Cause, ...] = ()
    pictures: tuple[tuple[int, Picture], ...] = ()
    issue_pictures: tuple[tuple[int, Picture], ...] = ()
    unreadable: int = 0
    pixel_images: int = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the data set's classes, by class id."""
        return self.matches.truth.class_map.names

    @property
    def counts(self) -> Mapping[str, int]:
        """Failures of each kind."""
        numbers = np.bincount(self.table.kinds, minlength=len(KINDS)).tolist()
        return dict(zip(KINDS, numbers, strict=True))

    def entry(self, number: int) -> Failure:
        """Return a failure with all that is known of it."""
        table, truth, found = self.table, self.matches.truth, self.matches.found
        kind, image_row = int(table.kinds[number]), int(table.image_rows[number])
        detection, annotation = int(table.detections[number]), int(table.objects[number])
        classes = [value_at(found.class_ids, detection), value_at(truth.class_ids, annotation)]
        class_id, other = reversed(classes) if kind == MISSED else classes
        assert class_id is not None
        found_xywh = found.boxes_xywh[detection] if detection >= 0 else None
        object_xywh = truth.boxes_xywh[annotation] if annotation >= 0 else None
        area = truth.area[annotation] if annotation >= 0 else found.boxes_xywh[detection, 2:].prod()
        score, size = value_at(found.scores, detection), SIZES[int(sizes_of(area))]
        iou = float(table.iou[number]) if np.isfinite(table.iou[number]) else None
        image_id, file_name = int(truth.image_ids[image_row]), self.file_names[image_row]
        told = (class_id, other, score, iou, size, found_xywh, object_xywh, float(table.severity[number]))
        return Failure(number, KINDS[kind], image_row, image_id, file_name, *told)

    def worst(self, count: int, kind: str | None = None) -> list[Failure]:
        """List the worst failures, of all kinds or of one."""
        mine = np.ones(len(self.table), bool) if kind is None else self.table.kinds == KINDS.index(kind)
        return [self.entry(number) for number in np.flatnonzero(mine)[:count].tolist()]

    def describe(self, failure: Failure) -> str:
        """Describe a failure in a few words: classes, score, overlap."""
        name, other = (
            "" if class_id is None else shortened(self.class_names[class_id], _NAME_LENGTH)
            for class_id in (failure.class_id, failure.other_class_id)
        )
        score, iou = failure.score, failure.iou or 0.0
        if failure.kind != "missed":
            return f"{name} {score:.2f}, {_DESCRIPTIONS[failure.kind].format(other=other, iou=iou)}"
        if score is None:
            return f"{name}, nothing is near"
        if failure.other_class_id == failure.class_id and score < self.score and iou >= FOREGROUND_IOU:
            return f"{name}, found with score {score:.2f} only, IoU {iou:.2f}"
        return f"{name}, nearest is {other} {score:.2f}, IoU {iou:.2f}"


def find_failures(
    matches: Matches,
    errors: ErrorTypes,
    file_names: Sequence[str],
    read_image: ReadImage | None = None,
    *,
    score: float,
    pictures: int = PICTURES_OF_KIND,
    issue_pictures: int = PICTURES_OF_REASON,
    pixel_images: int = PIXEL_IMAGES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Failures:
    """List what goes wrong at a score threshold, the labels to blame, and what failure goes with.

    Args:
        matches: Matches of all detections, whatever their score.
        errors: Kinds of the detections.
        file_names: File name of each row of the truth's ``image_ids``.
        read_image: Gives an image by that row; without it, no pictures and nothing about pixels.
        score: Detections below are not shown; such as the threshold of the best F1.
        pictures: Pictures of each kind of failure, at most.
        issue_pictures: Pictures of each reason to suspect a label, at most.
        pixel_images: Images to measure brightness, contrast and sharpness on, at most.
        seed: Seed of the choice of those images, and of resampling.
        progress: Called with images read and images to read.

    Raises:
        UsageError: Names are not one for each image.
    """
    truth, found = matches.truth, matches.found
    if len(file_names) != len(truth.image_ids):
        raise UsageError(f"find_failures got {len(file_names)} file names, expected {len(truth.image_ids)}")
    # the lists: failures, images, labels
    near = near_pairs(truth.image_rows, truth.boxes_xywh)
    table = failure_table(matches, errors, score)
    images = image_results(matches, table, file_names, score)
    issues = tuple(find_label_issues(matches, file_names, near))
    failures = Failures(matches, file_names, score, table, images, issues)
    # pictures, and pixels of the objects to be found and the detections that are shown
    objects = np.flatnonzero(matches.measured)
    shown = np.flatnonzero((found.scores >= score) & ~matches.ignored[0])
    pixels = [_Pixels(things, rows) for things, rows in ((truth, objects), (found, shown))]
    if read_image is not None:
        sample = _sample(matches, pixel_images, seed)
        failures = _with_pictures(failures, read_image, (pictures, issue_pictures), sample, pixels, progress)
    # properties of these objects and detections that go with failure
    measured, crowding = matches.measured, crowding_properties(near, objects, matches.measured)
    properties = []
    for own, more in zip(pixels, (crowding, []), strict=True):
        of_boxes = box_properties(truth, own.image_rows, own.class_ids, own.boxes, measured)
        properties.append([*of_boxes, *more, *pixel_properties(own.values)])
    missed, wrong = ~found_objects(matches, score)[objects], ~right_detections(matches, score)[shown]
    questions = [
        Question("missed objects", missed, pixels[0].image_rows, properties[0]),
        Question("wrong detections", wrong, pixels[1].image_rows, properties[1]),
    ]
    return dataclasses.replace(failures, causes=tuple(find_causes(questions, seed)))


class _Pixels:
    """Brightness and the like of boxes (ordered by image) of those images that were looked at, NaN elsewhere."""

    def __init__(self, things: CocoTruth | Found, rows: np.ndarray):
        self.image_rows, self.class_ids = things.image_rows[rows], things.class_ids[rows]
        self.boxes = things.boxes_xywh[rows]
        self.values = np.full((len(rows), len(PIXEL_PROPERTIES)), np.nan)

    def measure(self, row: int, image: np.ndarray) -> None:
        part = slice(*np.searchsorted(self.image_rows, (row, row + 1)))
        self.values[part] = measure_pixels(image, self.boxes[part])


def _with_pictures(
    failures: Failures,
    read_image: ReadImage,
    limits: tuple[int, int],
    sample: Sequence[int],
    pixels: Sequence[_Pixels],
    progress: Callable[[int, int], None] | None,
) -> Failures:
    """Read images once, for pictures of the worst failures and label issues, and to measure pixels."""
    table, issues = failures.table, failures.label_issues
    groups = [(REASONS.index(issue.reason), issue.image_row) for issue in issues]
    chosen = _worst_of_each(zip(table.kinds.tolist(), table.image_rows.tolist(), strict=True), limits[0])
    chosen_issues = _worst_of_each(groups, limits[1])
    spots = [_spot(failures, number) for number in chosen]
    spots += [_issue_spot(issues[place]) for place in chosen_issues]
    measured: set[int] = set()

    def measure(row: int, image: np.ndarray) -> None:
        measured.add(row)
        for entry in pixels:
            entry.measure(row, image)

    drawn, unreadable = draw_spots(spots, failures.matches, failures.score, read_image, measure, sample, progress)
    return dataclasses.replace(
        failures,
        pictures=tuple(zip(chosen, drawn[: len(chosen)], strict=True)),
        issue_pictures=tuple(zip(chosen_issues, drawn[len(chosen) :], strict=True)),
        unreadable=unreadable,
        pixel_images=len(measured),
    )


def _worst_of_each(pairs: Iterable[tuple[int, int]], count: int) -> list[int]:
    """Return places of the first ``count`` of each group, few of one image, from pairs of group and image."""
    chosen: list[int] = []
    of_image: Counter[tuple[int, int]] = Counter()
    of_group: Counter[int] = Counter()
    for place, (group, image_row) in enumerate(pairs):
        if of_group[group] < count and of_image[group, image_row] < _MOST_OF_IMAGE:
            of_image[group, image_row] += 1
            of_group[group] += 1
            chosen.append(place)
    return chosen


def _sample(matches: Matches, count: int, seed: int) -> list[int]:
    """Return rows of images to measure pixels on."""
    rows: np.ndarray = np.random.default_rng(seed).permutation(matches.rows)[:count]
    pixels = np.cumsum(matches.truth.sizes_hw[rows].prod(axis=1))
    chosen: list[int] = rows[: max(1, int(np.searchsorted(pixels, _MOST_PIXELS)))].tolist()
    return chosen


def _spot(failures: Failures, number: int) -> Spot:
    failure, table = failures.entry(number), failures.table
    words = failures.describe(failure)
    caption = f"{failure.kind}: {words} · {shortened(failure.file_name, _NAME_LENGTH)}"
    boxes = _boxes(failure.object_xywh), _boxes(failure.found_xywh)
    # the masks of both, what is annotated below
    truth, rle, masks = failures.matches.truth, failures.matches.found.rle, []
    annotation, detection = int(table.objects[number]), int(table.detections[number])
    if rle is not None and annotation >= 0:
        masks.append((truth.rle[annotation], LABEL_COLOR))
    if rle is not None and detection >= 0:
        [encoded] = as_rle([rle[detection]], truth.sizes_hw[[failure.image_row]])
        masks.append((encoded, FOUND_COLOR))
    return Spot(failure.image_row, *boxes, caption, masks)


def _issue_spot(issue: LabelIssue) -> Spot:
    words = shortened(issue.explanation, 3 * _NAME_LENGTH)
    caption = f"{issue.reason}: {words} · {shortened(issue.file_name, _NAME_LENGTH)}"
    return Spot(issue.image_row, _boxes(issue.box_xywh), _boxes(issue.proposed_box_xywh), caption)


def _boxes(box: Sequence[float] | np.ndarray | None) -> np.ndarray:
    return np.array([] if box is None else [box], dtype=np.float64).reshape(-1, 4)
