"""Evaluation results for people and programs: tables, ``metrics.json`` and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from detrkit.errors import DataError
from detrkit.evaluation.coco import METRIC_NAMES, UNDEFINED, CocoMetrics
from detrkit.files import atomic_file

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
COLORS = (
    "#1f5fbf",
    "#d9480f",
    "#2b8a3e",
    "#862e9c",
    "#0b7285",
    "#c2255c",
    "#5c940d",
    "#e67700",
    "#495057",
    "#3b5bdb",
)
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "font.size": 10,
}


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


def read_metrics_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a run's ``metrics.jsonl``; a last line cut off by a crash is left out.

    Raises:
        DataError: The file cannot be read, or another line is not a JSON object.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot read the log {path}: {error.strerror or error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}: line {number} is a {type(record).__name__}, expected a JSON object")
        records.append(record)
    return records


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
        return _save(figure, path)


def _plot_classes(axes: Axes, metrics: CocoMetrics, defined: list[int], recall: np.ndarray) -> None:
    most = sorted(defined, key=lambda i: -metrics.per_class[i].objects)[:MOST_CLASSES_DRAWN]
    for i, color in zip(sorted(most, key=lambda i: -metrics.per_class[i].AP50), COLORS, strict=False):
        entry = metrics.per_class[i]
        label = f"{entry.name} {percent(entry.AP50)}"
        axes.plot(recall, metrics.precision[0, :, i], color=color, lw=1.5, label=label)
    if len(most) < len(defined):
        axes.set_title(f"The {len(most)} commonest of {len(defined)} classes, IoU 0.50")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)


def plot_curves(log: str | Path | Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the loss, the learning rate and the AP of a run.

    Args:
        log: ``metrics.jsonl`` or its records: ``{"kind": "step", "step", "epoch", "loss", "lr"}`` and
            ``{"kind": "eval", "epoch", "AP", "AP50"}``; other kinds and keys are passed over.
        path: The PNG to write.

    Raises:
        DataError: The log cannot be read.
    """
    records = read_metrics_log(log) if isinstance(log, (str, Path)) else list(log)
    steps = _columns(records, "step", ("step", "loss"))
    with matplotlib.style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.set(xlabel="step", title="Training loss")
        right.set(xlabel="epoch", title="AP on the validation set, %")
        _plot_loss(left, steps["step"], steps["loss"], _columns(records, "step", ("step", "lr")))
        for name, color in zip(("AP50", "AP"), (COLORS[1], COLORS[0]), strict=True):
            evals = _columns(records, "eval", ("epoch", name))
            if len(evals[name]):
                marker = "o" if len(evals[name]) <= 60 else None
                values = 100 * evals[name]
                best = int(np.argmax(values))
                label = f"{name}, best {values[best]:.1f} in epoch {evals['epoch'][best]:.0f}"
                right.plot(evals["epoch"], values, color=color, lw=2, marker=marker, ms=4, label=label)
        if right.lines:
            right.set_ylim(bottom=0)
            right.xaxis.get_major_locator().set_params(integer=True)
            right.legend(loc="lower right")
        else:
            right.text(0.5, 0.5, "no evaluation yet", ha="center", transform=right.transAxes, color="gray")
        return _save(figure, path)


def _plot_loss(axes: Axes, steps: np.ndarray, loss: np.ndarray, rates: Mapping[str, np.ndarray]) -> None:
    if not len(loss):
        axes.text(0.5, 0.5, "no steps yet", ha="center", transform=axes.transAxes, color="gray")
        return
    window = max(1, len(loss) // 30)
    axes.plot(steps, loss, color=COLORS[0], lw=1, alpha=0.3 if window > 1 else 1, label="loss")
    if window > 1:
        smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
        middle = steps[window // 2 : window // 2 + len(smooth)]
        axes.plot(middle, smooth, color=COLORS[0], lw=2, label=f"mean of {window} records")
    # a few wild first steps must not flatten the rest of the curve
    axes.set_ylim(min(0.0, float(loss.min())), 1.05 * float(np.percentile(loss, 99.5)) or 1.0)
    if len(rates["lr"]):
        twin = axes.twinx()
        twin.plot(rates["step"], rates["lr"], color=COLORS[8], lw=1, ls="--")
        twin.set_ylim(0, 1.35 * float(rates["lr"].max()) or 1.0)
        twin.set_ylabel("learning rate (dashed)", color=COLORS[8])
        twin.grid(False)
        twin.spines["right"].set_visible(True)
        twin.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.set_zorder(twin.get_zorder() + 1)  # the loss and its legend lie over the dashed line
        axes.patch.set_visible(False)
    axes.legend(loc="upper right", frameon=True, facecolor="white", edgecolor="none", framealpha=0.9)


def _columns(records: Iterable[Mapping[str, Any]], kind: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of the records of a kind that have every key as a finite, defined number."""
    rows = [[record.get(key) for key in keys] for record in records if record.get("kind") == kind]
    kept = [row for row in rows if all(isinstance(value, (int, float)) and np.isfinite(value) for value in row)]
    table = np.array(kept, dtype=np.float64).reshape(-1, len(keys))
    if kind == "eval":
        table = table[table[:, -1] > UNDEFINED]
    return {key: table[:, column] for column, key in enumerate(keys)}


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130)
    return path
