"""``metrics.json``: every number of an evaluation for programs; its types here are its schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from detrkit.evaluation.bootstrap import Interval
from detrkit.evaluation.coco import CocoMetrics, known
from detrkit.files import atomic_file

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation

MOST_CONFUSED_CLASSES = 200
"""Beyond as many classes the matrix is left out: it would be most of the file."""

Share = Annotated[float, Meta(ge=0, le=1)] | None
Count = Annotated[int, Meta(ge=0)]
Numbers = list[float | None]
T = TypeVar("T", bound=Struct)


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


class IntervalsEntry(Struct):
    """Intervals by bootstrap over images."""

    confidence: Annotated[float, Meta(gt=0, lt=1)]
    resamples: Annotated[int, Meta(ge=1)]
    seed: int
    values: dict[str, IntervalEntry]


class ErrorsAtScore(Struct):
    """Errors at a score threshold or above."""

    score: float
    counts: dict[str, Count]


class ErrorsEntry(Struct):
    """Kinds of error (TIDE, arXiv:2008.08115): AP50 that would be gained without them, and their number.

    Counts are at any score, and at the threshold of the best F1.
    """

    iou: float
    ap50: Share
    cost: dict[str, Share]
    counts: dict[str, Count]
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
    objects_by_size: dict[str, Count]
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
    errors, curves = evaluation.errors, evaluation.curves
    failures, latency, origin = evaluation.failures, evaluation.latency, evaluation.origin
    names, score = evaluation.class_names, evaluation.score
    # what the types do not find under their own names
    together = {}
    if curves is not None:
        of_all = ("best_f1", "best_score", "precision", "recall", "f1")
        together = {name: _plain(getattr(curves, name)[0]) for name in of_all}
    above = None if errors is None else ErrorsAtScore(score, errors.counts_above(score))
    issues = 0 if failures is None else len(failures.label_issues)
    confusion = evaluation.confusion if len(names) <= MOST_CONFUSED_CLASSES else None
    numbers = evaluation.metrics.to_dict()
    numbers["per_class"] = [_class_entry(evaluation, *entry) for entry in enumerate(numbers["per_class"])]
    # everything else is taken by name
    content = MetricsFile(
        **numbers,
        schema_version=1,
        objects_by_size=evaluation.objects_by_size(),
        model=ModelEntry(origin.model, origin.kind),
        data=DataEntry(origin.data, origin.split, origin.seen_in_training),
        intervals=_entry(IntervalsEntry, evaluation.intervals),
        errors=_entry(ErrorsEntry, errors, iou=0.5, at_best_score=above),
        # those of all classes together; of single classes, the best values stand in per_class
        score_curves=_entry(ScoreCurvesEntry, curves, **together),
        overlaps=_entry(OverlapsEntry, evaluation.overlaps),
        confusion=_entry(ConfusionEntry, confusion, classes=[*names, None]),
        calibration=_entry(CalibrationEntry, evaluation.calibration),
        failures=_entry(FailuresEntry, failures, suspect_labels=issues),
        latency=None if latency is None else latency.to_dict(),
        provenance=dict(evaluation.provenance),
    )
    builtins: dict[str, Any] = msgspec.to_builtins(content)
    return builtins


def _class_entry(evaluation: Evaluation, class_id: int, entry: Mapping[str, Any]) -> ClassEntry:
    """Return what is known of a class: its AP, and what was asked for beyond."""
    curves = evaluation.curves
    found = ClassEntry(**entry)
    if evaluation.intervals is not None:
        found.intervals = _plain(evaluation.intervals.per_class[class_id])
    if curves is not None:
        found.best_f1, found.best_score = (
            known(curves.best_f1[class_id + 1]),
            known(curves.best_score[class_id + 1]),
        )
    if evaluation.overlaps is not None:
        found.mean_iou = known(evaluation.overlaps.per_class[class_id])
    if evaluation.calibration is not None:
        found.ece = known(evaluation.calibration.per_class_ece[class_id])
    return found


def _entry(kind: type[T], source: object, **given: Any) -> T | None:
    """Return an entry whose fields are the attributes of what was measured, but for those given; None of None."""
    if source is None:
        return None
    fields = [name for name in kind.__struct_fields__ if name not in given]
    return kind(**{name: _plain(getattr(source, name)) for name in fields}, **given)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; of a curve five digits, which is more than it shows."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "i":
            return value.tolist()
        return [None if number is None else float(f"{number:.5g}") for number in map(known, value.tolist())]
    if isinstance(value, Interval):
        return _entry(IntervalEntry, value)
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return known(value) if isinstance(value, float) else value
