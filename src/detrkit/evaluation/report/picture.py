"""Precision-recall curves as a picture that stands alone."""

from __future__ import annotations

from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detrkit.evaluation.coco import UNDEFINED, CocoMetrics
from detrkit.evaluation.report.terms import percent
from detrkit.visual.picture import COLORS, STYLE, save_figure
from detrkit.visual.text import shortened

MOST_CLASSES_DRAWN = 10


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
        label = f"{shortened(entry.name)} {percent(entry.AP50)}"
        axes.plot(recall, metrics.precision[0, :, i], color=color, lw=1.5, label=label)
    if len(most) < len(defined):
        axes.set_title(f"The {len(most)} commonest of {len(defined)} classes, IoU 0.50")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
