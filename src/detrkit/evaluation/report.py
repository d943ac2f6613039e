"""Evaluation results for people and programs: tables, ``metrics.json`` and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from detrkit.evaluation.coco import METRIC_NAMES, UNDEFINED, CocoMetrics
from detrkit.files import atomic_file
from detrkit.visual.picture import COLORS, STYLE, save_figure

MEANINGS = {
    "AP": "IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small objects, under 32² pixels",
    "APm": "medium objects, 32² to 96²",
    "APl": "large objects, over 96²",
    "AR1": "best detection per class and image",
    "AR10": "best 10",
    "AR100": "best {max_detections}",
    "ARs": "small objects",
    "ARm": "medium objects",
    "ARl": "large objects",
}
MOST_CLASSES_DRAWN = 10


def metrics_table(metrics: CocoMetrics) -> Table:
    """The twelve COCO numbers in percent, as the field's papers print them; "-" where undefined."""
    title = f"{metrics.images:,} images, {metrics.objects:,} objects, {metrics.detections:,} detections"
    table = Table(title=title, title_justify="left")
    table.add_column("metric", style="bold")
    table.add_column("%", justify="right")
    table.add_column("measured over", style="dim")
    for name in METRIC_NAMES:
        label = f"AR{metrics.max_detections}" if name == "AR100" else name
        meaning = MEANINGS[name].format(max_detections=metrics.max_detections)
        table.add_row(label, percent(metrics[name]), meaning, end_section=name in ("AP75", "APl", "AR100"))
    if metrics.unmatched_classes:
        shown = ", ".join(metrics.unmatched_classes[:8]) + (", ..." if len(metrics.unmatched_classes) > 8 else "")
        count = len(metrics.unmatched_classes)
        table.caption = f"{count} classes of the model not in the data set, not measured: {shown}"
    return table


def class_table(metrics: CocoMetrics) -> Table:
    """AP and AP50 of each class in percent, best first, classes without objects last."""
    table = Table(title="per class", title_justify="left")
    table.add_column("class", style="bold")
    for column in ("id", "objects", "AP", "AP50"):
        table.add_column(column, justify="right")
    for entry in sorted(metrics.per_class, key=lambda entry: (-entry.AP, entry.category_id)):
        row = (str(entry.category_id), f"{entry.objects:,}", percent(entry.AP), percent(entry.AP50))
        table.add_row(entry.name, *row)
    return table


def percent(value: float) -> str:
    """``42.0`` for 0.42, ``-`` where undefined."""
    return "-" if value == UNDEFINED else f"{100 * value:.1f}"


def write_metrics_json(path: str | Path, metrics: CocoMetrics) -> None:
    """Write :meth:`CocoMetrics.to_dict`: ``AP`` and so on at the top level; undefined numbers are null."""
    with atomic_file(Path(path)) as file:
        json.dump(metrics.to_dict(), file, indent=2, allow_nan=False)
        file.write("\n")


def plot_precision_recall(metrics: CocoMetrics, path: str | Path) -> Path:
    """Draw precision over recall: the mean over classes at several IoUs, and single classes at IoU 0.50.

    The picture shows what AP is the area of: COCO's interpolated precision at 101 recalls. With more than
    ``MOST_CLASSES_DRAWN`` classes, those with the most objects are drawn.
    """
    recall = np.linspace(0, 1, metrics.precision.shape[1])
    defined = [i for i, entry in enumerate(metrics.per_class) if entry.objects]
    with matplotlib.style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, title in ((left, "All classes"), (right, "By class, IoU 0.50")):
            axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", title=title)
        left.set_ylabel("precision")
        if defined:
            mean = np.where(metrics.precision > UNDEFINED, metrics.precision, 0)[:, :, defined].mean(axis=2)
            curves = ((mean[0], "AP50"), (mean[5], "AP75"), (mean.mean(axis=0), "AP"))
            for (curve, name), color in zip(curves, COLORS, strict=False):
                left.plot(recall, curve, color=color, lw=2, label=f"{name} {percent(metrics[name])}")
            left.fill_between(recall, mean.mean(axis=0), color=COLORS[2], alpha=0.08)
            left.legend(loc="upper right")
            _plot_classes(right, metrics, defined, recall)
        else:
            left.text(0.5, 0.5, "no objects annotated", ha="center", va="center", color="gray")
        return save_figure(figure, path)


def _plot_classes(axes: Axes, metrics: CocoMetrics, defined: list[int], recall: np.ndarray) -> None:
    most = sorted(defined, key=lambda i: -metrics.per_class[i].objects)[:MOST_CLASSES_DRAWN]
    for i, color in zip(sorted(most, key=lambda i: -metrics.per_class[i].AP50), COLORS, strict=False):
        entry = metrics.per_class[i]
        label = f"{entry.name} {percent(entry.AP50)}"
        axes.plot(recall, metrics.precision[0, :, i], color=color, lw=1.5, label=label)
    if len(most) < len(defined):
        axes.set_title(f"The {len(most)} commonest of {len(defined)} classes, IoU 0.50")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
