"""Tables of an evaluation, for the terminal, the page and the summary alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from detrkit.errors import counted, listed
from detrkit.evaluation.coco import METRIC_NAMES, UNDEFINED, CocoMetrics, known
from detrkit.evaluation.report.terms import ERROR_NAMES, MEANINGS, MORE_ERROR_NAMES, label_of
from detrkit.visual.table import Column, Table, Value, columns
from detrkit.visual.text import shortened

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation
    from detrkit.evaluation.bootstrap import Interval, Intervals
    from detrkit.evaluation.error_types import ErrorTypes
    from detrkit.latency import Latency

CLASS_COLUMNS = ("class", "id", "objects", "AP", "from", "to", "AP50", "mask AP", "PQ")
"""Columns of :func:`class_table` that a terminal has room for."""

_MOST_CONFUSIONS = 30
_PANOPTIC_COLUMNS = columns("points", "PQ", "SQ", "RQ")


def metrics_table(metrics: CocoMetrics, intervals: Intervals | None = None) -> Table:
    """Return the twelve COCO numbers in percent, as the field's papers print them.

    Args:
        metrics: numbers.
        intervals: how sure they are, where that was computed.
    """
    ranges = {} if intervals is None else intervals.values
    rows = []
    for name in METRIC_NAMES:
        ends = [] if intervals is None else _ends(ranges.get(name))
        meaning = MEANINGS[name].format(max_detections=metrics.max_detections)
        rows.append([label_of(name, metrics), known(metrics[name]), *ends, meaning])
    heads = [Column("metric"), Column("%", "points"), *_interval_columns(intervals), Column("measured over")]
    counts = ((metrics.images, "image"), (metrics.objects, "object"), (metrics.detections, "detection"))
    notes = _interval_notes(intervals)
    if metrics.unmatched_classes:
        names = listed([shortened(name) for name in metrics.unmatched_classes])
        count = counted(len(metrics.unmatched_classes), "class", "classes")
        notes.append(f"{count} of the model not in the data set, not measured: {names}")
    return Table(heads, rows, ", ".join(counted(*entry) for entry in counts), notes)


def size_table(evaluation: Evaluation) -> Table:
    """Return AP, AR and IoU by size of the objects."""
    counts = evaluation.objects_by_size()
    overlaps = {} if evaluation.overlaps is None else evaluation.overlaps.by_size
    rows: list[list[Value]] = []
    for size, limits in (("small", "under 32²"), ("medium", "32² to 96²"), ("large", "over 96²")):
        values = (evaluation[f"AP{size[0]}"], evaluation[f"AR{size[0]}"], overlaps.get(size, UNDEFINED))
        rows.append([f"{size} ({limits})", counts[size], *map(known, values)])
    heads = [Column("objects, pixels"), Column("count", "count", bar=True), *columns("points", "AP", "AR")]
    return Table([*heads, Column("mean IoU", "number", 3)], rows, "By size of the objects, in percent")


def class_table(evaluation: Evaluation) -> Table:
    """Return one row per class, best AP first, classes without objects last."""
    per_class, intervals, curves = evaluation.per_class, evaluation.intervals, evaluation.curves
    # the table column by column, each by class id
    filled: list[tuple[Column, Sequence[Value]]] = [
        (Column("class", "name"), [entry.name for entry in per_class]),
        (Column("id", "number"), [str(entry.category_id) for entry in per_class]),
        (Column("objects", "count", bar=True), [entry.objects for entry in per_class]),
        (Column("AP", "points"), [known(entry.AP) for entry in per_class]),
    ]
    if intervals is not None:
        ends = [_ends(None if entry is None else entry.get("AP")) for entry in intervals.per_class]
        filled += zip(_interval_columns(intervals), zip(*ends, strict=True), strict=False)
    filled.append((Column("AP50", "points"), [known(entry.AP50) for entry in per_class]))
    if evaluation.masks is not None:
        filled.append((Column("mask AP", "points"), [known(entry.AP) for entry in evaluation.masks.per_class]))
    if evaluation.panoptic is not None:
        own = evaluation.panoptic.metrics.per_class
        filled += [(column, [known(getattr(entry, column.name)) for entry in own]) for column in _PANOPTIC_COLUMNS]
    measured = {
        ("best F1", 3): None if curves is None else curves.best_f1[1:],
        ("at score", 2): None if curves is None else curves.best_score[1:],
        ("mean IoU", 3): None if evaluation.overlaps is None else evaluation.overlaps.per_class,
        ("ECE", 3): None if evaluation.calibration is None else evaluation.calibration.per_class_ece,
    }
    for (name, digits), values in measured.items():
        if values is not None:
            filled.append((Column(name, "number", digits), [known(value) for value in values.tolist()]))
    order = sorted(range(len(per_class)), key=lambda class_id: (-per_class[class_id].AP, class_id))
    rows = [[found[class_id] for _, found in filled] for class_id in order]
    return Table([column for column, _ in filled], rows, "Classes, AP in percent", _interval_notes(intervals))


def errors_table(errors: ErrorTypes, score: float) -> Table:
    """Return what each kind of error costs, dearest first; then all wrong detections, and all objects not found.

    Args:
        errors: kinds of error and their costs.
        score: threshold of the second column of counts.
    """
    above = errors.counts_above(score)
    dearest = sorted(ERROR_NAMES, key=lambda name: -errors.cost.get(name, 0.0))
    rows: list[list[Value]] = []
    for name in (*dearest, *MORE_ERROR_NAMES):
        cost, meaning = known(errors.cost.get(name, 0.0)), {**ERROR_NAMES, **MORE_ERROR_NAMES}[name]
        rows.append([name.replace("_", " "), cost, errors.counts.get(name, 0), above.get(name, 0), meaning])
    counts = columns("count", "count", f"at score {score:.2f}")
    heads = [Column("kind of error"), Column("costs AP50", "points", bar=True), *counts, Column("what it is")]
    return Table(heads, rows, "Errors at IoU 0.50, dearest first")


def most_confused(evaluation: Evaluation, most: int) -> list[tuple[str, str, int]]:
    """Return true class, detected class and how often, of two different classes, the most frequent first."""
    if evaluation.confusion is None:
        return []
    matrix = evaluation.confusion.matrix[:-1, :-1].copy()
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:most]
    names = evaluation.class_names
    rows, columns = np.unravel_index(order, matrix.shape)
    return [
        (names[row], names[column], int(matrix[row, column]))
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if matrix[row, column]
    ]


def confusions_table(evaluation: Evaluation) -> Table:
    """Return the classes that are most often taken for another one."""
    heads = [*columns("name", "annotated", "detected as"), Column("times", "count", bar=True)]
    rows = most_confused(evaluation, _MOST_CONFUSIONS)
    return Table(heads, rows, "Most frequent confusions of two classes")


def latency_table(latency: Latency) -> Table:
    """Return how long a detection takes, by stage, in milliseconds."""
    stages = {name: getattr(latency, name) for name in ("preprocess", "model", "postprocess", "total")}
    stages["reading the file (apart)"] = latency.decode
    heads = {"median": "p50", "90 %": "p90", "95 %": "p95", "99 %": "p99", "least": "min", "mean": "mean"}
    known_stages = [(name, times) for name, times in stages.items() if times is not None]
    rows = [[name, *(getattr(times, field) for field in heads.values())] for name, times in known_stages]
    return Table([Column("stage"), *columns("number", *heads, digits=2)], rows, "Time by stage, ms")


def origin_table(evaluation: Evaluation) -> Table:
    """Return what was measured on what, with which versions and settings."""
    origin, provenance, intervals = evaluation.origin, evaluation.provenance, evaluation.intervals
    found = {
        "model": origin.model,
        "kind of model": origin.kind,
        "data set": origin.data,
        "split": origin.split,
        "detections counted": f"best {evaluation.metrics.max_detections} of each image and class, at any score",
        "annotations": provenance.get("annotations"),
        "their SHA-256": provenance.get("annotations_sha256"),
        "evaluated": provenance.get("created"),
        "detrkit": provenance.get("detrkit"),
        "hotcoco": provenance.get("hotcoco"),
        **{name: None if value is None else str(value) for name, value in origin.settings.items()},
    }
    if intervals is not None:
        found["intervals"] = f"{intervals.resamples:,} bootstrap resamples of whole images, seed {intervals.seed}"
    return Table([Column("what"), Column("value")], [item for item in found.items() if item[1]], "Origin")


def _interval_columns(intervals: Intervals | None) -> list[Column]:
    return [] if intervals is None else columns("points", "from", "to")


def _interval_notes(intervals: Intervals | None) -> list[str]:
    if intervals is None:
        return []
    confidence = f"{100 * intervals.confidence:g} % interval"
    return [f"from and to: {confidence}, {intervals.resamples:,} resamples of the images"]


def _ends(interval: Interval | None) -> list[Value]:
    return [None, None] if interval is None else [known(interval.low), known(interval.high)]
