"""Charts of a page, drawn as SVG by ``page.html``: all is there without a script.

Whatever answers to the pointer and to arrow keys carries its text in ``data-tip``.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from markupsafe import Markup
from PIL import Image

from detrkit.visual.chart import Chart, Series, ticks
from detrkit.visual.page import Block, render

MOST_BARS = 30
MOST_VALUES = 600
"""Values of a drawn line; a longer one keeps the least and the greatest value of each stretch."""

_MOST_TIPS = 80
_MOST_TOLD = 12


@dataclasses.dataclass(frozen=True)
class Legend(Block):
    """Buttons that switch lines off and on, in all charts of the page; the names of the lines by number."""

    names: Sequence[str]


@dataclasses.dataclass(frozen=True)
class BarChart(Block):
    """Horizontal bars in the given order, the first on top; beyond ``MOST_BARS`` the rest is left out and counted.

    Args:
        title: what the chart shows.
        values: length of each bar by name.
        label: what the numbers count.
        log: logarithmic, where one bar would dwarf the others.
        digits: decimals of the numbers.
    """

    title: str
    values: Mapping[str, float]
    label: str = ""
    log: bool = False
    digits: int = 1

    @property
    def caption(self) -> str:
        """Title, what the numbers count, and how many bars are left out."""
        left_out = len(self.values) - MOST_BARS
        more = f" ({left_out} more not shown)" if left_out > 0 else ""
        return f"{self.title}{f', {self.label}' if self.label else ''}{more}"

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield name, length in percent and number of each bar."""
        shown = list(self.values.items())[:MOST_BARS]
        lengths = [math.log10(1 + value) if self.log else value for _, value in shown]
        greatest = max(lengths, default=0.0) or 1.0
        for (name, value), length in zip(shown, lengths, strict=True):
            yield name, f"{100 * length / greatest:.1f}", f"{value:,.{self.digits}f}"


@dataclasses.dataclass(frozen=True)
class HeatMap(Block):
    """A map of an image: the more there is, the deeper the colour.

    Args:
        title: what the map shows.
        grid: values, ``[rows, columns]``, row 0 on top.
        aspect: width of the whole over its height.
    """

    title: str
    grid: np.ndarray
    aspect: float = 1.0

    @property
    def source(self) -> str:
        """Address that holds the map itself, a pixel for each value."""
        depth = 255 * self.grid / max(float(self.grid.max(initial=0)), 1e-12)
        pixels = np.full((*self.grid.shape, 4), (59, 130, 246, 0), dtype=np.uint8)
        pixels[..., 3] = depth.round().astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


@dataclasses.dataclass(frozen=True)
class Charts(Block):
    """Charts side by side, as many in a row as fit; those with nothing to draw are left out."""

    charts: Sequence[Chart | BarChart | HeatMap]

    def drawn(self, chart: Chart | BarChart | HeatMap) -> Markup:
        """Return the figure of a chart."""
        if not isinstance(chart, Chart):
            return chart.html()
        return Markup() if chart.is_empty else render("Chart", chart, _Frame(chart))


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a grid.

    Args:
        share: depth of its colour, 0 to 1.
        text: figure in it.
        tip: text under the pointer.
        kind: hit: as it should be; other: not.
    """

    share: float
    text: str = ""
    tip: str = ""
    kind: Literal["hit", "other"] = "hit"


@dataclasses.dataclass(frozen=True)
class CellGrid(Block):
    """A table of coloured cells with names on two sides, such as a confusion matrix.

    Args:
        title: what the grid shows.
        rows: names, top to bottom.
        columns: names, left to right.
        cells: ``[rows][columns]``.
        row_label: what the rows are.
        column_label: what the columns are.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    row_label: str = ""
    column_label: str = ""


def thinned(series: Series, most: int = MOST_VALUES) -> Series:
    """Return a series of at most ``most`` points that keeps the least and the greatest value of each stretch."""
    count = len(series)
    if count <= most:
        return series
    edges = np.linspace(0, count, most // 2 + 1).astype(int)
    kept = {
        first + int(place)
        for first, end in itertools.pairwise(edges)
        for place in (series.y[first:end].argmin(), series.y[first:end].argmax())
    }
    order = np.array(sorted(kept))
    return Series(series.x[order], series.y[order])


class _Frame:
    """Where a chart's values lie in its drawing."""

    width, height = 560, 290
    left, right, top, floor = 54, 544, 8, 250

    def __init__(self, chart: Chart):
        self.chart = chart
        self.across, self.upwards = chart.limits()
        self.x_ticks = ticks(*self.across, log=chart.log_x, whole=chart.x_label == "step")
        self.y_ticks = ticks(*self.upwards, 5, log=chart.log_y)
        self.lines = [dataclasses.replace(line, series=thinned(line.series)) for line in chart.lines]
        last = ", ".join(f"{line.name} {line.series.y[-1]:.4g}" for line in self.lines[:8] if len(line.series))
        last = f"; last: {last}" if last else ""
        self.told = f"{chart.title} over {chart.x_label}{last}. Arrow keys read values."

    def x(self, values: np.ndarray | float) -> np.ndarray:
        return (self.left + _share(values, *self.across, self.chart.log_x) * (self.right - self.left)).round(1)

    def y(self, values: np.ndarray | float) -> np.ndarray:
        return (self.floor - _share(values, *self.upwards, self.chart.log_y) * (self.floor - self.top)).round(1)

    def places(self, series: Series) -> list[tuple[float, float]]:
        return list(zip(self.x(series.x).tolist(), self.y(series.y).tolist(), strict=True))

    def path(self, series: Series) -> str:
        return "".join(f"{'L' if n else 'M'}{x} {y}" for n, (x, y) in enumerate(self.places(thinned(series))))

    @property
    def cloud(self) -> str:
        return "".join(f"M{x:.0f} {y:.0f}h0" for x, y in self.places(self.chart.points))

    @property
    def named_points(self) -> Iterator[tuple[str, str, int, float, float]]:
        chart = self.chart
        for name, label, color, x, y in chart.named_points():
            tip = f"{name}\n{chart.x_label} {x:.4g}\n{chart.y_label} {y:.4g}"
            yield label, tip, color, float(self.x(x)), float(self.y(y))

    def tips(self) -> Iterator[tuple[float, float, str]]:
        """Yield columns, left and right, that tell the values of all lines near them."""
        known = [line for line in self.lines if len(line.series)]
        if not known or self.chart.point_names:  # which tell of themselves
            return
        xs = np.unique(np.concatenate([line.series.x for line in known]))
        if len(xs) > _MOST_TIPS:
            xs = xs[np.linspace(0, len(xs) - 1, _MOST_TIPS).round().astype(int)]
        places = self.x(xs)
        borders = [self.left, *((places[:-1] + places[1:]) / 2).round(1).tolist(), self.right]
        near = 0.02 * (self.across[1] - self.across[0])
        for x, (start, end) in zip(xs.tolist(), itertools.pairwise(borders), strict=True):
            told = f"{self.chart.x_label} {x:.6g}"
            for line in known[:_MOST_TOLD]:
                nearest = int(np.abs(line.series.x - x).argmin())
                if abs(line.series.x[nearest] - x) <= near:
                    told += f"\n{line.name}: {line.series.y[nearest]:.4g}"
            yield start, end, told


def _share(values: np.ndarray | float, low: float, high: float, log: bool) -> np.ndarray:
    if log:
        values, low, high = np.log(np.maximum(values, low / 10)), math.log(low), math.log(high)
    return (np.asarray(values) - low) / (high - low)
