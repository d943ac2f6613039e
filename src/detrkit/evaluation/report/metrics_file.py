"""``metrics.json``: every number of an evaluation for programs; its types here are its schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from detrkit.evaluation.coco import CocoMetrics, known
from detrkit.files import atomic_file

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation
    from detrkit.evaluation.bootstrap import Interval

MOST_CONFUSED_CLASSES = 200
"""Beyond as many classes the matrix is left out: it would be most of the file."""

Share = Annotated[float, Meta(ge=0, le=1)] | None
Count = Annotated[int, Meta(ge=0)]
Numbers = list[float | None]


class IntervalEntry(Struct):
    """A measured value and the interval that holds the true one."""

    value: Share
    low: float | None
    high: float | None


class ClassEntry(Struct, kw_only=True):
    """Numbers of a class; what was not asked for is absent, intervals of a class with too few images are null."""

    name: str
    category_id: int
    objects: Count
    AP: Share
    AP50: Share
    intervals: dict[str, IntervalEntry] | UnsetType | None = UNSET
    best_f1: Share | UnsetType = UNSET
    best_score: float | UnsetType | None = UNSET
    mean_iou: Share | UnsetType = UNSET
    ece: Share | UnsetType = UNSET


class ModelEntry(Struct):
    """Name of what was evaluated, and what it is, such as detrkit, torchvision or results."""

    name: str
    kind: str


class DataEntry(Struct):
    """Data that was evaluated on; whether the model was trained on these images."""

    name: str
    split: str
    seen_in_training: bool


class SizeCounts(Struct):
    """Objects under 32 x 32 pixels, up to 96 x 96, and above."""

    small: Count
    medium: Count
    large: Count


class IntervalsEntry(Struct):
    """Intervals by bootstrap over images."""

    confidence: Annotated[float, Meta(gt=0, lt=1)]
    resamples: Annotated[int, Meta(ge=1)]
    seed: int
    values: dict[str, IntervalEntry]


class ErrorCosts(Struct):
    """AP50 that would be gained without errors of a kind (TIDE, arXiv:2008.08115)."""

    classification: Share
    localization: Share
    both: Share
    duplicate: Share
    background: Share
    missed: Share
    false_positives: Share
    false_negatives: Share


class ErrorCounts(Struct):
    """Errors of each kind."""

    classification: Count
    localization: Count
    both: Count
    duplicate: Count
    background: Count
    missed: Count
    false_positives: Count
    false_negatives: Count


class ErrorsAtScore(Struct):
    """Errors at a score threshold or above."""

    score: float
    counts: ErrorCounts


class ErrorsEntry(Struct):
    """Kinds of error: what they cost, how many at any score, and at the threshold of the best F1."""

    iou: float
    ap50: Share
    cost: ErrorCosts
    counts: ErrorCounts
    at_best_score: ErrorsAtScore


class ScoreCurvesEntry(Struct):
    """Precision, recall and F1 of all classes together; every object and detection counts the same."""

    iou: float
    best_f1: Share
    best_score: float | None
    thresholds: Numbers
    precision: Numbers
    recall: Numbers
    f1: Numbers


class OverlapsEntry(Struct):
    """IoU of detections with the objects they found."""

    mean: Share
    by_size: dict[str, Share]
    edges: Numbers
    histogram: list[Count]


class ConfusionEntry(Struct):
    """Rows the annotated class, columns the detected one, the last of both the background."""

    score: float
    iou: float
    classes: list[str | None]
    matrix: list[list[Count]]


class CalibrationEntry(Struct):
    """Reliability by bins of equal width: expected calibration error, largest gap, and the bins."""

    iou: float
    ece: Share
    mce: Share
    edges: Numbers
    counts: list[Count]
    confidence: Numbers
    accuracy: Numbers


class FailuresEntry(Struct):
    """Errors at the threshold of the best F1; the lists are in failures.csv and label_errors.csv."""

    score: float
    counts: dict[str, Count]
    suspect_labels: Count


class MetricsFile(Struct, kw_only=True):
    """Numbers of an evaluation.

    AP, AR, precision, recall, F1, IoU, scores and costs are 0 to 1; what is undefined, or was not asked for, is
    null. Keys may be added; schema_version grows when one changes its meaning or goes.
    """

    schema_version: Literal[1]
    AP: Share
    AP50: Share
    AP75: Share
    APs: Share
    APm: Share
    APl: Share
    AR1: Share
    AR10: Share
    AR100: Share
    ARs: Share
    ARm: Share
    ARl: Share
    images: Count
    objects: Count
    detections: Count
    max_detections: Annotated[int, Meta(ge=1)]
    unmatched_classes: list[str]
    per_class: list[ClassEntry]
    objects_by_size: SizeCounts
    model: ModelEntry
    data: DataEntry
    intervals: IntervalsEntry | None
    errors: ErrorsEntry | None
    score_curves: ScoreCurvesEntry | None
    overlaps: OverlapsEntry | None
    confusion: ConfusionEntry | None
    calibration: CalibrationEntry | None
    failures: FailuresEntry | None
    latency: dict[str, Any] | None
    provenance: dict[str, Any]


def metrics_schema() -> dict[str, Any]:
    """Return the JSON Schema of metrics.json; the entry ``MetricsFile`` of its ``$defs`` is the whole file."""
    schema: dict[str, Any] = msgspec.json.schema(MetricsFile)
    return schema


def write_metrics_json(path: str | Path, metrics: Evaluation | CocoMetrics) -> None:
    """Write the numbers: ``AP`` and so on at the top level; what is undefined is null."""
    content = metrics.to_dict() if isinstance(metrics, CocoMetrics) else metrics_content(metrics)
    with atomic_file(Path(path)) as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")


def metrics_content(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation ready for JSON; parts that were not asked for are null."""
    origin, latency, failures = evaluation.origin, evaluation.latency, evaluation.failures
    numbers = evaluation.metrics.to_dict()
    numbers["per_class"] = [_class_entry(evaluation, *entry) for entry in enumerate(numbers["per_class"])]
    content = MetricsFile(
        **numbers,
        schema_version=1,
        objects_by_size=SizeCounts(**evaluation.objects_by_size()),
        model=ModelEntry(origin.model, origin.kind),
        data=DataEntry(origin.data, origin.split, origin.seen_in_training),
        intervals=_intervals(evaluation),
        errors=_errors(evaluation),
        score_curves=_curves(evaluation),
        overlaps=_overlaps(evaluation),
        confusion=_confusion(evaluation),
        calibration=_calibration(evaluation),
        failures=None
        if failures is None
        else FailuresEntry(failures.score, dict(failures.counts), len(failures.label_issues)),
        latency=None if latency is None else latency.to_dict(),
        provenance=dict(evaluation.provenance),
    )
    builtins: dict[str, Any] = msgspec.to_builtins(content)
    return builtins


def _class_entry(evaluation: Evaluation, class_id: int, entry: Mapping[str, Any]) -> ClassEntry:
    """What is known of a class: its AP, and what was asked for beyond."""
    intervals, curves = evaluation.intervals, evaluation.curves
    found = ClassEntry(**entry)
    if intervals is not None:
        interval = intervals.per_class[class_id]
        found.intervals = None if interval is None else _by_name(interval)
    if curves is not None:
        found.best_f1 = known(curves.best_f1[class_id + 1])
        found.best_score = known(curves.best_score[class_id + 1])
    if evaluation.overlaps is not None:
        found.mean_iou = known(evaluation.overlaps.per_class[class_id])
    if evaluation.calibration is not None:
        found.ece = known(evaluation.calibration.per_class_ece[class_id])
    return found


def _by_name(intervals: Mapping[str, Interval]) -> dict[str, IntervalEntry]:
    return {
        name: IntervalEntry(known(entry.value), known(entry.low), known(entry.high))
        for name, entry in intervals.items()
    }


def _intervals(evaluation: Evaluation) -> IntervalsEntry | None:
    found = evaluation.intervals
    if found is None:
        return None
    return IntervalsEntry(found.confidence, found.resamples, found.seed, _by_name(found.values))


def _errors(evaluation: Evaluation) -> ErrorsEntry | None:
    errors, score = evaluation.errors, evaluation.score
    if errors is None:
        return None
    cost = ErrorCosts(**{name: known(value) for name, value in errors.cost.items()})
    above = ErrorsAtScore(score, ErrorCounts(**errors.counts_above(score)))
    return ErrorsEntry(0.5, known(errors.ap50), cost, ErrorCounts(**errors.counts), above)


def _curves(evaluation: Evaluation) -> ScoreCurvesEntry | None:
    """Those of all classes together; of single classes, the best values stand in ``per_class``."""
    found = evaluation.curves
    if found is None:
        return None
    curves = (
        _short(found.thresholds),
        *(_short(values[0]) for values in (found.precision, found.recall, found.f1)),
    )
    return ScoreCurvesEntry(found.iou, known(found.best_f1[0]), known(found.best_score[0]), *curves)


def _overlaps(evaluation: Evaluation) -> OverlapsEntry | None:
    found = evaluation.overlaps
    if found is None:
        return None
    by_size = {name: known(value) for name, value in found.by_size.items()}
    return OverlapsEntry(known(found.mean), by_size, _short(found.edges), found.histogram.tolist())


def _confusion(evaluation: Evaluation) -> ConfusionEntry | None:
    found, names = evaluation.confusion, evaluation.class_names
    if found is None or len(names) > MOST_CONFUSED_CLASSES:
        return None
    return ConfusionEntry(found.score, found.iou, [*names, None], found.matrix.tolist())


def _calibration(evaluation: Evaluation) -> CalibrationEntry | None:
    found = evaluation.calibration
    if found is None:
        return None
    counts = found.counts.tolist()
    bins = (_short(found.edges), counts, _short(found.confidence), _short(found.accuracy))
    return CalibrationEntry(found.iou, known(found.ece), known(found.mce), *bins)


def _short(values: np.ndarray) -> Numbers:
    """Five digits, which is more than a curve shows."""
    return [None if value is None else float(f"{value:.5g}") for value in map(known, values.tolist())]
