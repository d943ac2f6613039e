"""Sections of the report that say how good: verdict, numbers, classes, curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from detrkit.evaluation.coco import METRIC_NAMES, UNDEFINED
from detrkit.evaluation.matching import IOU_THRESHOLDS
from detrkit.evaluation.report.metrics_file import defined
from detrkit.evaluation.report.terms import MEANINGS, label_of, percent, range_of
from detrkit.evaluation.report.verdict import operating_point, verdict, warnings
from detrkit.visual.chart import Charts
from detrkit.visual.curves import Line, Panel
from detrkit.visual.history import Series
from detrkit.visual.interactive_charts import Bar, BarPlot
from detrkit.visual.page import Block, Card, Cards, Column, Section, Table, Text, Value
from detrkit.visual.plots import COLORS

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation

MOST_CLASSES_DRAWN = len(COLORS)
"""Each with a colour of its own."""
_DRAWN_IOUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)


def summary_section(evaluation: Evaluation) -> Section:
    """The result in sentences and key figures."""
    blocks: list[Block] = [Text(line, "warning") for line in warnings(evaluation)]
    blocks += [Text(line) for line in verdict(evaluation)]
    return Section("In short", [*blocks, Cards(_cards(evaluation))])


def _cards(evaluation: Evaluation) -> list[Card]:
    metrics, intervals = evaluation.metrics, evaluation.intervals
    cards = []
    for name in ("AP", "AP50", "AP75"):
        known = None if intervals is None else intervals.values.get(name)
        note = "" if known is None or intervals is None else f"{range_of(known)}, {100 * intervals.confidence:g} %"
        cards.append(Card(name, percent(metrics[name]), note))
    point = operating_point(evaluation)
    if point is not None:
        score, precision, recall, f1 = point
        cards.append(Card("best F1", f"{f1:.3f}", f"at a score of {score:.2f}"))
        cards.append(Card("precision there", f"{100 * precision:.1f} %"))
        cards.append(Card("recall there", f"{100 * recall:.1f} %"))
    if evaluation.overlaps is not None and evaluation.overlaps.mean != UNDEFINED:
        cards.append(Card("mean IoU", f"{evaluation.overlaps.mean:.3f}", "of boxes that found their object"))
    if evaluation.calibration is not None and evaluation.calibration.ece != UNDEFINED:
        cards.append(Card("calibration error", f"{evaluation.calibration.ece:.3f}", "ECE, 0 is best"))
    if evaluation.latency is not None:
        cards.append(Card("latency", f"{evaluation.latency.total.p50:.1f} ms", evaluation.latency.device))
    counts = (("images", metrics.images), ("objects", metrics.objects), ("detections", metrics.detections))
    return [*cards, *(Card(name, f"{count:,}") for name, count in counts)]


def numbers_section(evaluation: Evaluation) -> Section:
    """The twelve numbers, and AP by size."""
    metrics, intervals = evaluation.metrics, evaluation.intervals
    columns = [Column("metric"), Column("%", "number")]
    if intervals is not None:
        columns += [Column("from", "number"), Column("to", "number")]
    rows: list[list[Value]] = []
    for name in METRIC_NAMES:
        row: list[Value] = [label_of(name, metrics), _percent(metrics[name])]
        if intervals is not None:
            known = intervals.values.get(name)
            row += [None, None] if known is None else [_percent(known.low), _percent(known.high)]
        rows.append([*row, MEANINGS[name].format(max_detections=metrics.max_detections)])
    caption = "The twelve COCO numbers in percent"
    if intervals is not None:
        caption += (
            f"; from and to: {100 * intervals.confidence:g} % interval over {intervals.resamples:,} resamples of "
            "the images"
        )
    blocks: list[Block] = [Table([*columns, Column("measured over")], rows, caption)]
    return Section("Numbers", [*blocks, _size_table(evaluation)])


def _size_table(evaluation: Evaluation) -> Table:
    counts = evaluation.objects_by_size()
    overlaps = {} if evaluation.overlaps is None else evaluation.overlaps.by_size
    rows: list[list[Value]] = [
        [
            f"{size} ({limits})",
            counts[size],
            _percent(evaluation[f"AP{size[0]}"]),
            _percent(evaluation[f"AR{size[0]}"]),
            defined(overlaps.get(size, UNDEFINED)),
        ]
        for size, limits in (("small", "under 32²"), ("medium", "32² to 96²"), ("large", "over 96²"))
    ]
    columns = [
        Column("objects, pixels"),
        Column("count", "count", bar=True),
        Column("AP", "number"),
        Column("AR", "number"),
        Column("mean IoU", "number", 3),
    ]
    return Table(columns, rows, "By size of the objects, in percent")


def class_section(evaluation: Evaluation) -> Section:
    """One row per class, the commonest first."""
    intervals, curves = evaluation.intervals, evaluation.curves
    columns = [Column("class"), Column("objects", "count", bar=True), Column("AP", "number")]
    if intervals is not None:
        columns += [Column("from", "number"), Column("to", "number")]
    columns.append(Column("AP50", "number"))
    if curves is not None:
        columns += [Column("best F1", "number", 3), Column("at score", "number", 2)]
    if evaluation.overlaps is not None:
        columns.append(Column("mean IoU", "number", 3))
    if evaluation.calibration is not None:
        columns.append(Column("ECE", "number", 3))
    rows: list[list[Value]] = []
    for class_id in sorted(range(len(evaluation.per_class)), key=lambda i: -evaluation.per_class[i].objects):
        entry = evaluation.per_class[class_id]
        row: list[Value] = [entry.name, entry.objects, _percent(entry.AP)]
        if intervals is not None:
            known = intervals.per_class[class_id]
            interval = None if known is None else known.get("AP")
            row += [None, None] if interval is None else [_percent(interval.low), _percent(interval.high)]
        row.append(_percent(entry.AP50))
        if curves is not None:
            row += [
                defined(float(curves.best_f1[class_id + 1])),
                defined(float(curves.best_score[class_id + 1])),
            ]
        if evaluation.overlaps is not None:
            row.append(defined(float(evaluation.overlaps.per_class[class_id])))
        if evaluation.calibration is not None:
            row.append(defined(float(evaluation.calibration.per_class_ece[class_id])))
        rows.append(row)
    caption = "Each class; AP in percent"
    if intervals is not None:
        caption += (
            f", from and to its {100 * intervals.confidence:g} % interval, where the class has images enough"
        )
    return Section("Classes", [Table(columns, rows, caption)])


def curve_section(evaluation: Evaluation) -> Section:
    """Precision against recall, and all three against the threshold."""
    chosen = _commonest(evaluation)
    if not chosen:
        return Section("Curves", [Text("There are no objects, so there are no curves.")])
    names = [entry.name for entry in evaluation.per_class]
    kept = f"{len(chosen)} commonest classes" if len(chosen) < _with_objects(evaluation) else "each class"
    precision = np.where(evaluation.metrics.precision > UNDEFINED, evaluation.metrics.precision, 0)
    recall = np.linspace(0, 1, precision.shape[1])
    defined_classes = [i for i, entry in enumerate(evaluation.per_class) if entry.objects]
    mean = precision[:, :, defined_classes].mean(axis=2)
    rows = [int(np.abs(IOU_THRESHOLDS - iou).argmin()) for iou in _DRAWN_IOUS]
    by_iou = [Line(f"IoU {IOU_THRESHOLDS[row]:.2f}", i, Series(recall, mean[row])) for i, row in enumerate(rows)]
    by_iou.append(Line("IoU 0.50 to 0.95", len(by_iou), Series(recall, mean.mean(axis=0))))
    by_class = [Line(names[i], n, Series(recall, precision[0, :, i])) for n, i in enumerate(chosen)]
    panels = [
        _panel("Precision over recall, mean of all classes", "recall", by_iou),
        _panel(f"Precision over recall, {kept}, IoU 0.50", "recall", by_class),
    ]
    curves = evaluation.curves
    if curves is not None:
        together = [
            Line(name, n, _series(curves.thresholds, getattr(curves, name.lower())[0]))
            for n, name in enumerate(("Precision", "Recall", "F1"))
        ]
        single = [Line(names[i], n, _series(curves.thresholds, curves.f1[i + 1])) for n, i in enumerate(chosen)]
        panels.append(_panel("Precision, recall and F1 over the score threshold", "score threshold", together))
        panels.append(_panel(f"F1 over the score threshold, {kept}", "score threshold", single))
    note = "Move over a chart, or focus it and press arrow keys, to read values; press a name to hide its line."
    return Section("Curves", [Text(note), Charts([panel for panel in panels if panel.lines])])


def overlap_section(evaluation: Evaluation) -> Section:
    """How well boxes fit."""
    found = evaluation.overlaps
    if found is None or found.mean == UNDEFINED:
        return Section("Boxes", [Text("No detection found an object, so no boxes can be compared.")])
    total = max(int(found.histogram.sum()), 1)
    bars = [
        Bar(low, high, count, f"IoU {low:.3f} to {high:.3f}\n{count:,} boxes, {100 * count / total:.1f} %")
        for low, high, count in zip(found.edges[:-1], found.edges[1:], found.histogram.tolist(), strict=True)
    ]
    text = f"Boxes that found their object overlap it by {found.mean:.3f} on average."
    title = "IoU of detections with the objects they found"
    return Section("Boxes", [Text(text), BarPlot(title, bars, "IoU", "boxes")])


def _panel(title: str, x_label: str, lines: Sequence[Line]) -> Panel:
    return Panel(title, "", x_label, [line for line in lines if len(line.series)], parts=True)


def _series(x: np.ndarray, y: np.ndarray) -> Series:
    known = y > UNDEFINED
    return Series(x[known], y[known])


def _with_objects(evaluation: Evaluation) -> int:
    return sum(entry.objects > 0 for entry in evaluation.per_class)


def _commonest(evaluation: Evaluation) -> list[int]:
    """Class ids of those with most objects."""
    order = sorted(range(len(evaluation.per_class)), key=lambda i: -evaluation.per_class[i].objects)
    return [i for i in order if evaluation.per_class[i].objects][:MOST_CLASSES_DRAWN]


def _percent(value: float) -> float | None:
    known = defined(value)
    return None if known is None else 100 * known
