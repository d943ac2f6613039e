"""An evaluation of one set of detections: the numbers, how sure they are, and why."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detrkit.classes import SIZE_LIMITS
from detrkit.errors import UsageError
from detrkit.evaluation.bootstrap import (
    LEAST_IMAGES,
    LEAST_RESAMPLES,
    RESAMPLES,
    Interval,
    Intervals,
    bootstrap,
    image_weights,
)
from detrkit.evaluation.calibration import Calibration, calibrate
from detrkit.evaluation.coco import UNDEFINED, ClassMetrics, CocoMetrics
from detrkit.evaluation.confusion import Confusion, confusion
from detrkit.evaluation.error_types import ErrorTypes, classify_errors
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.failures import Failures, find_failures
from detrkit.evaluation.matching import Matches
from detrkit.evaluation.overlaps import Overlaps, overlaps
from detrkit.evaluation.panoptic import PanopticMetrics, SegmentMatches, match_segments
from detrkit.evaluation.panoptic_pictures import draw_worst
from detrkit.evaluation.score_curves import ScoreCurves, score_curves
from detrkit.evaluation.truth import CocoTruth
from detrkit.evaluation.untouched import other_readings
from detrkit.latency import Latency
from detrkit.visual.page import Picture

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""

DEFAULT_SCORE = 0.5
"""From which detections are taken where no threshold can be learned, since there are no objects or detections."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The model and the data of an evaluation.

    Args:
        model: Name of the model.
        kind: Kind of the model, such as detrkit, torchvision or results.
        data: Name or path of the data set.
        split: Name of the split.
        annotations: Annotation file, where it is one.
        seen_in_training: The model was trained on these images.
        settings: Settings that the numbers depend on, such as precision.
        notes: What a reader must know of the detections, in sentences.
    """

    model: str = ""
    kind: str = ""
    data: str = ""
    split: str = ""
    annotations: Path | None = None
    seen_in_training: bool = False
    settings: Mapping[str, str | int | float | bool | None] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def provenance(self) -> dict[str, Any]:
        """Return versions, the hour, and a hash of the annotations, so that a number can be traced."""
        file = self.annotations
        is_file = file is not None and file.is_file()
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if file and is_file else None
        return {
            "detrkit": importlib.metadata.version("detrkit"),
            "hotcoco": importlib.metadata.version("hotcoco"),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "annotations": None if file is None else str(file),
            "annotations_sha256": digest,
            "settings": dict(self.settings),
        }


@dataclasses.dataclass(frozen=True)
class Panoptic:
    """Panoptic quality, and where it is lost.

    Args:
        metrics: PQ, SQ, RQ.
        interval: Of PQ by resampling images, percentiles; None where that was not asked for.
        losses: PQ that each kind of error takes: together what it lacks to 1.
        counts: Annotated and found segments of each kind.
        pictures: Images of the lowest PQ with their segments.
    """

    metrics: PanopticMetrics
    interval: Interval | None = None
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation. Its numbers are those of ``metrics``; what was not asked for is None.

    Args:
        metrics: The twelve COCO numbers, and AP of each class.
        matches: Matches of detections and objects.
        origin: Model and data.
        provenance: See :meth:`Origin.provenance`.
        intervals: Intervals[Interval] of AP, AP50, AP75 and classes by the choice of images.
        errors: Kinds of errors, and the AP that each kind costs.
        curves: Precision, recall and F1 against the score threshold.
        overlaps: Fit of the boxes.
        confusion: Classes taken for each other, at the threshold of the best F1.
        calibration: Calibration of the scores; None also where they are not 0 to 1.
        failures: Every error at the threshold of the best F1, with pictures of the worst.
        latency: Time that a detection takes.
        masks: The twelve numbers of masks, where there are any.
        mask_intervals: Their intervals.
        mask_overlaps: Fit of the masks.
        panoptic: Panoptic quality, where there are panoptic pictures.
        other_readings: AP on other readings of the annotations, see :mod:`detrkit.evaluation.untouched`.
        notes: What a reader must know of detections and annotations, in sentences.
    """

    metrics: CocoMetrics
    matches: Matches
    origin: Origin
    provenance: Mapping[str, Any]
    intervals: Intervals | None = None
    errors: ErrorTypes | None = None
    curves: ScoreCurves | None = None
    overlaps: Overlaps | None = None
    confusion: Confusion | None = None
    calibration: Calibration | None = None
    failures: Failures | None = None
    latency: Latency | None = None
    masks: CocoMetrics | None = None
    mask_intervals: Intervals | None = None
    mask_overlaps: Overlaps | None = None
    panoptic: Panoptic | None = None
    other_readings: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    @property
    def values(self) -> Mapping[str, float]:
        """The twelve COCO numbers."""
        return self.metrics.values

    @property
    def per_class(self) -> tuple[ClassMetrics, ...]:
        """One entry per class of the data set, by ascending category id."""
        return self.metrics.per_class

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the data set's classes, by class id."""
        return self.matches.truth.class_map.names

    @property
    def score(self) -> float:
        """Threshold of the best F1 of all classes together, at which errors are counted and shown."""
        return best_score(self.curves)

    def objects_by_size(self) -> dict[str, int]:
        """Count objects that are small, medium and large by COCO's limits."""
        area = self.matches.truth.area[self.matches.measured]
        return {
            name: int(((area >= least) & (area < limit)).sum()) for name, (least, limit) in SIZE_LIMITS.items()
        }


def analyze(
    evaluator: CocoEvaluator,
    *,
    origin: Origin | None = None,
    explain: bool = True,
    resamples: int = RESAMPLES,
    file_names: Sequence[str] | None = None,
    read_image: Callable[[int], np.ndarray | None] | None = None,
    latency: Latency | None = None,
    progress: Progress | None = None,
    image_ids: Sequence[int] | Literal["all"] = "all",
    as_stored: CocoTruth | None = None,
) -> Evaluation:
    """Measure and explain what an evaluator has collected.

    Args:
        evaluator: Evaluator with all detections.
        origin: Model and data.
        explain: True to find out why the numbers are what they are; otherwise only numbers and intervals.
        resamples: Resamples of the bootstrap; 0 for no intervals.
        file_names: File name of each row of the truth's images; their ids if not given.
        read_image: Gives the image of such a row, uint8 ``[H, W, 3]``, None if it cannot be read; without it there
            are no pictures of failures.
        latency: Latency, measured before.
        progress: Called with what is being done, steps done and steps in all.
        image_ids: Images to measure on; all of the annotations if not given.
        as_stored: The annotations with boxes as stored, where reading turned some.

    Raises:
        DataError: There is no image to measure on.
        UsageError: ``resamples`` are too few.
    """
    check_resamples(resamples)
    origin = origin or Origin()
    metrics, matches = evaluator.finish(image_ids), evaluator.matches(image_ids)
    readings, sentences = other_readings(matches, as_stored)
    found = Evaluation(metrics, matches, origin, origin.provenance(), latency=latency, other_readings=readings)
    found = dataclasses.replace(found, notes=(*origin.notes, *sentences))
    if resamples and metrics.objects:
        tell = None if progress is None else lambda done: progress("resampling", done, resamples)
        found = dataclasses.replace(found, intervals=bootstrap(matches, resamples, progress=tell))
    names = list(map(str, matches.truth.image_ids.tolist())) if file_names is None else file_names
    pictures = (
        None
        if read_image is None or not explain
        else functools.partial(draw_worst, read_image=read_image, file_names=names)
    )
    found = _with_masks(found, evaluator, image_ids, resamples, explain, pictures)
    if not explain:
        return found
    curves, errors = score_curves(matches), classify_errors(matches)
    looking = None if progress is None else functools.partial(progress, "looking at failures")
    score = best_score(curves)
    return dataclasses.replace(
        found,
        errors=errors,
        curves=curves,
        overlaps=overlaps(matches),
        confusion=confusion(matches, score),
        calibration=calibrate(matches) if _are_probabilities(matches.found.scores) else None,
        failures=find_failures(matches, errors, names, read_image, score=score, progress=looking),
    )


def _with_masks(
    found: Evaluation,
    evaluator: CocoEvaluator,
    image_ids: Sequence[int] | Literal["all"],
    resamples: int,
    explain: bool,
    draw: Callable[[SegmentMatches], tuple[Picture, ...]] | None,
) -> Evaluation:
    """Measure masks and panoptic pictures too, where there are any."""
    if evaluator.has_masks:
        metrics = evaluator.finish(image_ids, masks=True)
        found = dataclasses.replace(found, masks=metrics)
        if metrics.objects and (resamples or explain):
            matches = evaluator.matches(image_ids, masks=True)
            intervals = bootstrap(matches, resamples) if resamples else None
            fit = overlaps(matches) if explain else None
            found = dataclasses.replace(found, mask_intervals=intervals, mask_overlaps=fit)
    if evaluator.has_panoptic:
        panoptic = Panoptic(evaluator.finish_panoptic(image_ids))
        if resamples or explain:
            segments = match_segments(*evaluator.segments(image_ids))
            panoptic = dataclasses.replace(panoptic, losses=segments.losses(), counts=segments.counts())
            panoptic = dataclasses.replace(panoptic, interval=_interval(segments, resamples))
            if draw is not None:
                panoptic = dataclasses.replace(panoptic, pictures=draw(segments))
        found = dataclasses.replace(found, panoptic=panoptic)
    return found


def _interval(segments: SegmentMatches, resamples: int) -> Interval | None:
    """Return the interval of PQ that holds 95 % of resamples of the images; None where they tell nothing."""
    images = len(segments.rows)
    if not resamples or images < LEAST_IMAGES:
        return None
    samples = segments.resampled(image_weights(images, resamples, np.random.default_rng(0)))
    low, high = np.percentile(samples, (2.5, 97.5)).tolist()
    if low == high:  # nothing or everything was found: no sample makes that certain
        return None
    return Interval(1 - sum(segments.losses().values()), low, high)


def check_resamples(resamples: int) -> None:
    """Refuse a number of resamples that gives no intervals, better before the hours of work than after.

    Raises:
        UsageError: It is neither 0 nor enough.
    """
    if resamples != 0 and resamples < LEAST_RESAMPLES:
        raise UsageError(
            f"resamples is {resamples}, expected 0 (no intervals) or {LEAST_RESAMPLES} and more (1,000 is usual)"
        )


def _are_probabilities(scores: np.ndarray) -> bool:
    """Return False for scores of another kind, as files of results may hold, which can only be ranked."""
    return bool(((scores >= 0) & (scores <= 1)).all())


def best_score(curves: ScoreCurves | None) -> float:
    """Return the threshold of the best F1 of all classes together, ``DEFAULT_SCORE`` where there is none."""
    score = UNDEFINED if curves is None else float(curves.best_score[0])
    return DEFAULT_SCORE if score == UNDEFINED or not np.isfinite(score) else score
