"""Evaluation results as tables of a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from detrkit.evaluation.coco import METRIC_NAMES, CocoMetrics
from detrkit.evaluation.report.terms import ERROR_NAMES, MEANINGS, label_of, percent, range_of
from detrkit.visual.text import printable, shortened

if TYPE_CHECKING:
    from detrkit.evaluation.bootstrap import Intervals
    from detrkit.evaluation.error_types import ErrorTypes


def metrics_table(metrics: CocoMetrics, intervals: Intervals | None = None) -> Table:
    """The twelve COCO numbers in percent, as the field's papers print them; "-" where undefined.

    Args:
        metrics: The numbers.
        intervals: How sure they are, where that was computed.
    """
    title = f"{metrics.images:,} images, {metrics.objects:,} objects, {metrics.detections:,} detections"
    table = Table(title=title, title_justify="left")
    table.add_column("metric", style="bold")
    table.add_column("%", justify="right")
    if intervals is not None:
        table.add_column(f"{100 * intervals.confidence:g} % interval", no_wrap=True)
    table.add_column("measured over", style="dim")
    for name in METRIC_NAMES:
        meaning = MEANINGS[name].format(max_detections=metrics.max_detections)
        sure = [] if intervals is None else [range_of(intervals.values.get(name))]
        end = name in ("AP75", "APl", "AR100")
        table.add_row(label_of(name, metrics), percent(metrics[name]), *sure, meaning, end_section=end)
    if metrics.unmatched_classes:
        shown = ", ".join(shortened(name) for name in metrics.unmatched_classes[:8])
        count = len(metrics.unmatched_classes)
        more = ", ..." if count > 8 else ""
        table.caption = escape(f"{count} classes of the model not in the data set, not measured: {shown}{more}")
    return table


def class_table(metrics: CocoMetrics, intervals: Intervals | None = None) -> Table:
    """AP and AP50 of each class in percent, best first, classes without objects last.

    Args:
        metrics: The numbers.
        intervals: How sure they are, where that was computed.
    """
    table = Table(title="per class", title_justify="left")
    table.add_column("class", style="bold")
    for column in ("id", "objects", "AP"):
        table.add_column(column, justify="right")
    if intervals is not None:
        table.add_column(f"{100 * intervals.confidence:g} % interval", no_wrap=True)
    table.add_column("AP50", justify="right")
    order = sorted(range(len(metrics.per_class)), key=lambda i: (-metrics.per_class[i].AP, i))
    for class_id in order:
        entry = metrics.per_class[class_id]
        sure = []
        if intervals is not None:
            known = intervals.per_class[class_id]
            sure = [range_of(None if known is None else known.get("AP"))]
        name = escape(shortened(printable(entry.name), 60))
        numbers = (str(entry.category_id), f"{entry.objects:,}", percent(entry.AP))
        table.add_row(name, *numbers, *sure, percent(entry.AP50))
    return table


def errors_table(errors: ErrorTypes) -> Table:
    """What each kind of error costs, dearest first."""
    table = Table(title="errors at IoU 0.50", title_justify="left")
    table.add_column("kind", style="bold")
    table.add_column("costs AP50", justify="right")
    table.add_column("count", justify="right")
    table.add_column("what it is", style="dim")
    for name, meaning in sorted(ERROR_NAMES.items(), key=lambda item: -errors.cost.get(item[0], 0.0)):
        table.add_row(name, percent(errors.cost.get(name, 0.0)), f"{errors.counts.get(name, 0):,}", meaning)
    return table
