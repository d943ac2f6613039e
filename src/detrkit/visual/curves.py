"""Curves of trainings: what is drawn beside what, under which name, and as a picture."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from detrkit.errors import UsageError
from detrkit.visual.history import Across, History, Series, read_metrics_log
from detrkit.visual.picture import COLORS, STYLE, save_figure
from detrkit.visual.plots import short_number
from detrkit.visual.text import shortened

DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Of lines beyond the colours, as SVG writes them."""

_TITLES = {
    "loss": "Loss, weighted sum of terms and layers",
    "loss_class_error": "Share of matched queries with the wrong class",
    "APs": "AP by size of the objects, %",
    "AR1": "AR, %",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm before clipping",
    "clipped": "Share of steps clipped",
    "loss_scale": "Loss scale of float16",
    "images_per_s": "Images a second",
    "data_wait": "Share of time waiting for data",
    "memory_gib": "Memory, GiB",
    "host_gib": "Memory of the host, GiB",
    "micro_batch": "Micro-batch, images",
}
_GROUPS = (
    ("Losses", ("loss",)),
    ("Evaluation", ()),
    ("Optimiser", ("lr", "grad_norm", "clipped", "loss_scale")),
    ("Speed and memory", ("images_per_s", "data_wait", "memory_gib", "host_gib", "micro_batch")),
    ("Outputs of the network", ()),
    ("Losses by decoder layer", ("layers.",)),
)
_SHARED = (
    ("lr", lambda name: name == "lr" or name.startswith("lr_")),
    ("grad_norm", lambda name: name == "grad_norm" or name.startswith("grad_norm_")),
    ("AP", lambda name: name in ("AP", "AP50", "AP75")),
    ("APs", lambda name: name in ("APs", "APm", "APl")),
    ("AR1", lambda name: name.startswith("AR")),
)
"""What shares a panel where there is one run: the first name stands for all that the test accepts."""

_BRIEF = ("AP", "AP50", "AP75")
"""Of the evaluation, what a picture of several runs shows."""

_COLUMNS = 3


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve of a panel.

    Args:
        name: Of the run, or of the part where a panel shows one run.
        number: Chooses colour and dashes; the same run has the same in every panel.
        series: What is drawn.
        raw: What was measured, where ``series`` is smoothed.
    """

    name: str
    number: int
    series: Series
    raw: Series | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves that share their axes.

    Args:
        title: What they show.
        group: Under which heading.
        x_label: What runs along the axis.
        lines: The curves; at least one.
        log: Logarithmic upwards.
        parts: The lines are parts of one run, which only the panel itself can explain.
    """

    title: str
    group: str
    x_label: str
    lines: Sequence[Line]
    log: bool = False
    parts: bool = False

    def limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Range across and upwards; a few wild first steps must not flatten the rest of a curve."""
        xs = np.concatenate([line.series.x for line in self.lines])
        ys = np.concatenate([line.series.y for line in self.lines])
        raw = np.concatenate([(line.raw or line.series).y for line in self.lines])
        low, high = min(float(ys.min()), float(np.percentile(raw, 0.5))), float(ys.max())
        if len(ys) > 100:
            high = max(float(np.percentile(raw, 99.5)), float(np.percentile(ys, 99.5)))
        if self.log:
            return _wide(float(xs.min()), float(xs.max())), (low / 1.3, high * 1.3)
        if 0 <= low < 0.6 * high or 0 < high - low < 1e-6 * high or low == high > 0:
            low = 0.0
        return _wide(float(xs.min()), float(xs.max())), _wide(low, high + 0.05 * (high - low))


def build_panels(
    histories: Sequence[History],
    *,
    metrics: Sequence[str] = (),
    across: Across = "step",
    smooth: float = 0.6,
    brief: bool = False,
) -> list[Panel]:
    """What there is to draw of some runs.

    Args:
        histories: The runs.
        metrics: Names to draw, as in metrics.jsonl; all if none is given.
        across: What runs along the axis.
        smooth: Weight of the past in what is measured in every step, 0 to 1; 0 does not smooth.
        brief: Of several runs, only the main metrics of the evaluation.

    Raises:
        UsageError: No run has a metric of that name, or not every run knows times.
    """
    without = [history.name for history in histories if history.records and not history.has_times]
    if across == "time" and without:
        raise UsageError(f"no times are recorded in {', '.join(without)}; draw over steps or epochs")
    steps = list(dict.fromkeys(name for history in histories for name in history.metrics("step")))
    evals = list(dict.fromkeys(name for history in histories for name in history.metrics("eval")))
    for name in metrics:
        if name not in (*steps, *evals) and not _layers(name, steps):
            raise UsageError(_unknown(name, [*steps, *evals]))
    if len(histories) > 1:
        shown = [name for name in evals if name in _BRIEF] or evals if brief else evals
        families = _families_of_runs([*steps, *shown], metrics)
    else:
        families = _families_of_one([*steps, *evals], metrics)
    panels = [
        _panel(histories, name, members, across, smooth, is_eval=name in evals) for name, members in families
    ]
    order = [group for group, _ in _GROUPS]
    return sorted((panel for panel in panels if panel.lines), key=lambda panel: order.index(panel.group))


def _panel(
    histories: Sequence[History],
    name: str,
    members: Mapping[str, str],
    across: Across,
    smooth: float,
    *,
    is_eval: bool,
) -> Panel:
    """One panel: of several runs a line each, of one run a line for each member."""
    several = len(histories) > 1
    label, factor = _axis(histories, across)
    found = [
        _line(history, member, across, 0.0 if is_eval else smooth, factor, named)
        for number, history in enumerate(histories)
        for place, (part, member) in enumerate(members.items())
        for named in [(history.name, number) if several else (part, place)]
    ]
    lines = [line for line in found if len(line.series)]
    low = min((float(line.series.y.min()) for line in lines), default=0.0)
    high = max((float(line.series.y.max()) for line in lines), default=0.0)
    wide = (name == "loss_scale" or name.startswith("lr")) and 0 < low < high / 20
    return Panel(
        _title(name, several or len(members) < 2),
        _group(name, is_eval),
        label,
        lines,
        log=wide,
        parts=len(members) > 1,
    )


def _axis(histories: Sequence[History], across: Across) -> tuple[str, float]:
    """What runs along the axis, and what hours are multiplied by: short trainings are told in minutes."""
    if across != "time":
        return across, 1.0
    longest = max((float(history.series("loss", "time").x.max(initial=0.0)) for history in histories), default=0.0)
    return ("hours of training", 1.0) if longest > 2 else ("minutes of training", 60.0)


def draw_panels(panels: Sequence[Panel], path: str | Path, labels: Mapping[str, str]) -> Path:
    """Draw panels into a PNG.

    Args:
        panels: As of :func:`build_panels`.
        path: Where to.
        labels: What the legend says of each run, by name.
    """
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.style.context(STYLE, after_reset=True):
        head = 0.25 * len(labels) + 0.2
        figure = Figure(figsize=(max(4.6 * columns, 6.0), 3.1 * rows + head), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        handles: dict[str, Any] = {}
        for axes in grid[: len(panels)]:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        if len(labels) > 1:
            runs = [name for name in labels if name in handles]
            texts = [shortened(labels[name], 110) for name in runs]
            figure.legend([handles[name] for name in runs], texts, loc="outside upper left")
        else:
            figure.suptitle(shortened(next(iter(labels.values())), 80), x=0.01, ha="left", weight="bold")
        return save_figure(figure, path)


def plot_curves(log: str | Path | Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the loss, the learning rate and the AP of a run: the picture in its folder.

    Args:
        log: ``metrics.jsonl`` or its records: ``{"kind": "step", "step", "epoch", "loss", "lr"}`` and
            ``{"kind": "eval", "epoch", "AP", "AP50"}``; other kinds and keys are passed over.
        path: The PNG to write.

    Raises:
        DataError: The log cannot be read.
    """
    records = read_metrics_log(log) if isinstance(log, (str, Path)) else list(log)
    run = History("", Path(), {}, records)
    with matplotlib.style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.set(xlabel="step", title="Training loss")
        right.set(xlabel="epoch", title="AP on the validation set, %")
        _plot_loss(left, run.series("loss"), run.series("lr"))
        for name, color in zip(("AP50", "AP"), (COLORS[1], COLORS[0]), strict=True):
            evals = run.series(name, "epoch")
            if len(evals):
                marker = "o" if len(evals) <= 60 else None
                values = 100 * evals.y
                best = int(np.argmax(values))
                label = f"{name}, best {values[best]:.1f} in epoch {evals.x[best]:.0f}"
                right.plot(evals.x, values, color=color, lw=2, marker=marker, ms=4, label=label)
        if right.lines:
            right.set_ylim(bottom=0)
            right.xaxis.set_major_locator(MaxNLocator(integer=True))
            right.legend(loc="lower right")
        else:
            right.text(0.5, 0.5, "no evaluation yet", ha="center", transform=right.transAxes, color="gray")
        return save_figure(figure, path)


def smoothed(series: Series, weight: float) -> Series:
    """An exponential mean, without the pull towards zero at its beginning."""
    if not 0 < weight < 1 or len(series) < 3:
        return series
    values, mean, whole = np.empty(len(series)), 0.0, 0.0
    for place, value in enumerate(series.y):
        mean = weight * mean + (1 - weight) * float(value)
        whole = weight * whole + (1 - weight)
        values[place] = mean / whole
    return Series(series.x, values)


def _line(
    history: History, metric: str, across: Across, smooth: float, factor: float, named: tuple[str, int]
) -> Line:
    found = history.series(metric, across)
    series = Series(factor * found.x, 100 * found.y if _is_percent(metric) else found.y)
    soft = smoothed(series, 0.0 if metric.startswith("lr") else smooth)
    return Line(named[0], named[1], soft, None if soft is series else series)


def _families_of_runs(every: Sequence[str], wanted: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """A panel for each metric; layers are drawn only where they are asked for by name."""
    names = [member for name in wanted for member in ([name] if name in every else _layers(name, every) or [name])]
    return [(name, {name: name}) for name in names or every if names or not name.startswith("layers.")]


def _families_of_one(every: Sequence[str], wanted: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Panels of what belongs together, each by what its lines are called there."""
    families: dict[str, dict[str, str]] = {}
    for name in wanted or every:
        if name.startswith("layers.") and (not wanted or name not in every):
            head = name if name not in every else name.rpartition(".")[0]
            families[head] = {_part(head, member): member for member in _layers(head, every)}
            continue
        head = next((head for head, accepts in _SHARED if not wanted and accepts(name)), name)
        families.setdefault(head, {})[_part(head, name)] = name
    return list(families.items())


def _layers(head: str, every: Sequence[str]) -> list[str]:
    """The layers of ``layers.class``, and ``layers.class.1`` and so on among other names."""
    return [name for name in every if name.startswith("layers.") and name.startswith(f"{head}.")]


def _part(head: str, member: str) -> str:
    if member.startswith("layers."):
        return f"layer {member.rpartition('.')[2]}"
    if head == member:
        return {"lr": "model", "grad_norm": "all"}.get(head, head)
    return member.removeprefix(f"{head}_")


def _title(name: str, alone: bool) -> str:
    """Of a panel; where a name stands for several, that of all of them."""
    if name in _TITLES and not (alone and _is_percent(name)):
        return _TITLES[name]
    if name.startswith("layers."):
        term, _, layer = name.removeprefix("layers.").partition(".")
        return f"Loss {term} of layer {layer}" if layer else f"Loss {term} of each layer"
    for lead, what in (("loss_", "Loss"), ("lr_", "Learning rate of"), ("grad_norm_", "Gradient norm of")):
        if name.startswith(lead):
            return f"{what} {name.removeprefix(lead)}"
    return f"{name}, %" if _is_percent(name) else name.replace("_", " ")


def _group(name: str, is_eval: bool) -> str:
    if is_eval:
        return "Evaluation"
    found = [group for group, leads in _GROUPS if leads and name.startswith(leads)]
    return found[-1] if found else "Outputs of the network"


def _is_percent(metric: str) -> bool:
    """COCO's metrics are shares that the field writes in percent."""
    return metric[:2] in ("AP", "AR")


def _unknown(name: str, every: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, every, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    shown = ", ".join(metric for metric in every if not metric.startswith("layers.")) or "nothing yet"
    return f"no run has a metric {name}; {hint}recorded: {shown}"


def _wide(low: float, high: float) -> tuple[float, float]:
    """A range that has a width."""
    if high > low:
        return low, high
    margin = 0.5 * abs(low) or 1.0
    return low - margin, high + margin


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        color = COLORS[line.number % len(COLORS)]
        dashes = DASHES[line.number // len(COLORS) % len(DASHES)]
        style: Any = (0, tuple(map(float, dashes.split()))) if dashes else "-"
        if line.raw is not None:
            axes.plot(line.raw.x, line.raw.y, color=color, lw=0.8, alpha=0.25)
        marker = "o" if len(line.series) <= 30 else None
        axes.plot(
            line.series.x, line.series.y, color=color, ls=style, lw=1.7, marker=marker, ms=3, label=line.name
        )
    axes.set_title(panel.title, fontsize=10)
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(short_number))
        axes.yaxis.set_minor_formatter(NullFormatter())
    across, upwards = panel.limits()
    axes.set(xlim=across, ylim=upwards, xlabel=panel.x_label)
    axes.xaxis.set_major_formatter(FuncFormatter(short_number))
    if panel.parts:
        axes.legend(fontsize=8)


def _plot_loss(axes: Axes, loss: Series, rates: Series) -> None:
    if not len(loss):
        axes.text(0.5, 0.5, "no steps yet", ha="center", transform=axes.transAxes, color="gray")
        return
    window = max(1, len(loss) // 30)
    axes.plot(loss.x, loss.y, color=COLORS[0], lw=1, alpha=0.3 if window > 1 else 1, label="loss")
    if window > 1:
        smooth = np.convolve(loss.y, np.ones(window) / window, mode="valid")
        middle = loss.x[window // 2 : window // 2 + len(smooth)]
        axes.plot(middle, smooth, color=COLORS[0], lw=2, label=f"mean of {window} records")
    # a few wild first steps must not flatten the rest of the curve
    axes.set_ylim(min(0.0, float(loss.y.min())), 1.05 * float(np.percentile(loss.y, 99.5)) or 1.0)
    if len(rates):
        twin = axes.twinx()
        twin.plot(rates.x, rates.y, color=COLORS[8], lw=1, ls="--")
        twin.set_ylim(0, 1.35 * float(rates.y.max()) or 1.0)
        twin.set_ylabel("learning rate (dashed)", color=COLORS[8])
        twin.grid(False)
        twin.spines["right"].set_visible(True)
        twin.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.set_zorder(twin.get_zorder() + 1)  # the loss and its legend lie over the dashed line
        axes.patch.set_visible(False)
    axes.legend(loc="upper right", frameon=True, facecolor="white", edgecolor="none", framealpha=0.9)
