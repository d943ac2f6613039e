"""Pictures of curves that stand alone, on white, in PNG files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from detrkit.files import atomic_bytes
from detrkit.visual.chart import COLORS, Chart, short_number, ticks
from detrkit.visual.text import printable, shortened

STYLE = Path(__file__).with_suffix(".mplstyle")
"""For ``matplotlib.style.context``; names of classes and runs are never read as mathematics."""

_STYLES = ("-", "--", ":", "-.")
_MOST_DOTS = 60


def draw_charts(
    charts: Sequence[Chart], path: str | Path, *, title: str = "", legend: Mapping[str, str] | None = None
) -> Path:
    """Draw the lines and named points of charts side by side into a PNG.

    Args:
        charts: what to draw; at least one.
        path: file.
        title: stands above them.
        legend: what the picture says of each line's name above all charts, where they share their lines.
    """
    legend = legend or {}
    columns = min(3, len(charts))
    rows = math.ceil(len(charts) / columns)
    with matplotlib.style.context(STYLE, after_reset=True):
        head = 0.25 * len(legend) + 0.2
        figure = Figure(figsize=(max(4.6 * columns, 6.0), 3.1 * rows + head), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, chart in zip(grid, charts, strict=False):
            _draw(axes, chart)
        for axes in grid[len(charts) :]:
            axes.set_axis_off()
        if legend:
            drawn = [axes.get_legend_handles_labels() for axes in grid[: len(charts)]]
            handles = {label: handle for pair in drawn for handle, label in zip(*pair, strict=True)}
            known = [name for name in legend if printable(name) in handles]
            texts = [shortened(legend[name], 110) for name in known]
            figure.legend([handles[printable(name)] for name in known], texts, loc="outside upper left")
        elif title:
            figure.suptitle(shortened(title, 80), x=0.01, ha="left", weight="bold")
        return save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    path = Path(path)
    FigureCanvasAgg(figure)
    with warnings.catch_warnings(), atomic_bytes(path, durable=False) as file:
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box in a name is no reason to fail
        figure.savefig(file, format="png", dpi=130)
    return path


def _draw(axes: Axes, chart: Chart) -> None:
    for line in chart.lines:
        color, style = COLORS[line.number % len(COLORS)], _STYLES[line.number // len(COLORS) % len(_STYLES)]
        if line.raw is not None:
            axes.plot(line.raw.x, line.raw.y, color=color, lw=0.8, alpha=0.25)
        marker = "o" if len(line.series) <= _MOST_DOTS else None
        label = printable(line.name)
        axes.plot(line.series.x, line.series.y, color=color, ls=style, lw=1.7, marker=marker, ms=3, label=label)
    across, upwards = chart.limits()
    for _, label, number, x, y in chart.named_points():
        axes.plot(x, y, "o", color=COLORS[number % len(COLORS)], ms=6, zorder=3)
        right = x > sum(across) / 2
        place = (-7 if right else 7, 7 if number % 2 else -12)
        side = "right" if right else "left"
        axes.annotate(shortened(label), (x, y), place, textcoords="offset points", fontsize=8, ha=side)
    axes.set_title(printable(chart.title), fontsize=10)
    if chart.log_y:
        axes.set_yscale("log")
    axes.set(xlim=across, ylim=upwards, xlabel=chart.x_label, ylabel=chart.y_label)
    whole = chart.x_label == "step"
    found_ticks = ticks(*across, whole=whole), ticks(*upwards, 5, log=chart.log_y)
    for axis, found in zip((axes.xaxis, axes.yaxis), found_ticks, strict=True):
        axis.set_major_locator(FixedLocator(found))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(short_number))
    if chart.is_empty:
        axes.text(0.5, 0.5, "nothing yet", ha="center", transform=axes.transAxes, color="gray")
    elif chart.legend:
        axes.legend(fontsize=8, frameon=True, facecolor="white", edgecolor="none", framealpha=0.8)
