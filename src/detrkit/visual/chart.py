"""Charts: what is drawn over two axes, described once for pages (interactive_charts) and pictures (picture)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

COLORS = ("#3b82f6", "#e8710a", "#1a9c6b", "#a259e6", "#d6336c", "#0c9ab8", "#8a8f00", "#868e96")
"""Of series; each has a contrast of 3 or more on white and on near-black."""
DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Of lines beyond the colours."""
MOST_POINTS = 5_000
"""Points that are drawn; of more a random part."""

_WILD = 100
"""Values of a chart from which a few of them may lie outside of it."""


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve.

    Args:
        x: places, ascending.
        y: values there, finite.
    """

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve of a chart.

    Args:
        name: name in the legend.
        number: chooses colour and dashes; the same run has the same in every chart.
        series: values to draw.
        raw: measured values, where ``series`` is smoothed.
    """

    name: str
    number: int
    series: Series
    raw: Series | None = None


@dataclasses.dataclass(frozen=True)
class Bar:
    """An upright bar over a range.

    Args:
        start: where it begins on the axis.
        end: where it ends.
        value: its height.
        tip: text under the pointer.
    """

    start: float
    end: float
    value: float
    tip: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines, bars and points that share their axes.

    Args:
        title: what the chart shows.
        x_label: what runs along the axis.
        y_label: what runs upwards.
        lines: curves.
        bars: upright bars, left to right.
        points: single points.
        point_names: a name beside each point, or none at all.
        labelled: names that are written beside their points, where not all are; the others are told on demand.
        marks: vertical lines by name.
        diagonal: draw the line on which height equals place.
        log_x: logarithmic axis.
        log_y: logarithmic upwards.
        y_range: range upwards, where not that of the values.
        legend: name the lines beside the chart, since nothing else on the page does.
        group: heading that the chart stands under.
    """

    title: str
    x_label: str = ""
    y_label: str = ""
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()
    points: Series = dataclasses.field(default_factory=lambda: Series(np.zeros(0), np.zeros(0)))
    point_names: Sequence[str] = ()
    labelled: Sequence[str] | None = None
    marks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    diagonal: bool = False
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    legend: bool = False
    group: str = ""

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to draw."""
        return not any(len(line.series) for line in self.lines) and not self.bars and not len(self.points)

    def named_points(self) -> Iterator[tuple[str, str, int, float, float]]:
        """Yield name, label and number of colour of each point, and its place; grey where it has no label."""
        shown = self.point_names if self.labelled is None else self.labelled
        colors = {name: number for number, name in enumerate(shown)}
        for name, x, y in zip(self.point_names, self.points.x, self.points.y, strict=bool(self.point_names)):
            is_shown = name in colors
            yield name, name if is_shown else "", colors.get(name, len(COLORS) - 1), float(x), float(y)

    def limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the range across and upwards; a few wild first steps must not flatten the rest of a curve."""
        edges = [edge for bar in self.bars for edge in (bar.start, bar.end)]
        heights = [value for bar in self.bars for value in (0.0, bar.value)]
        xs = np.concatenate([np.array(edges), self.points.x, *(line.series.x for line in self.lines)])
        ys = np.concatenate([np.array(heights), self.points.y, *(line.series.y for line in self.lines)])
        if not len(xs):
            return (0.0, 1.0), (0.0, 1.0)
        across, low, high = (float(xs.min()), float(xs.max())), float(ys.min()), float(ys.max())
        if len(self.points):
            across = _padded(*across, log=self.log_x)
        if self.lines:
            raw = np.concatenate([(line.raw or line.series).y for line in self.lines])
            low = min(low, float(np.percentile(raw, 0.5)))
            if len(ys) > _WILD:
                high = max(float(np.percentile(raw, 99.5)), float(np.percentile(ys, 99.5)))
        if self.y_range is not None:
            return _wide(*across), self.y_range
        if self.log_y:
            return _wide(*across), (low / 1.3, high * 1.3)
        if 0 <= low < 0.6 * high or 0 < high - low < 1e-6 * high or low == high > 0:
            low = 0.0
        return _wide(*across), _wide(low, high + 0.05 * (high - low))


def make_lines(series: Mapping[str, Series]) -> list[Line]:
    """Return a line of its own colour for each series."""
    return [Line(name, number, values) for number, (name, values) in enumerate(series.items())]


def make_bars(edges: np.ndarray, values: np.ndarray, tip: str) -> list[Bar]:
    """Return a bar for each bin; ``tip`` is filled with its edges and its value."""
    bins = zip(edges[:-1].tolist(), edges[1:].tolist(), values.tolist(), strict=True)
    return [Bar(low, high, value, tip.format(low, high, value)) for low, high, value in bins]


def histogram(
    title: str,
    series: Mapping[str, np.ndarray],
    edges: np.ndarray,
    x_label: str = "",
    *,
    log_x: bool = False,
    marks: Mapping[str, float] | None = None,
) -> Chart:
    """Return how many values lie in each bin: bars of one series, of several a line each in percent of its values.

    Args:
        title: what the chart shows.
        series: values by name.
        edges: edges of the bins; values beyond are counted in the outermost bins.
        x_label: what the values are.
        log_x: logarithmic axis of values.
        marks: vertical lines by name, such as the limits of COCO's sizes.
    """
    counts = {
        name: np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
        for name, values in series.items()
        if len(values)
    }
    if len(series) == 1:
        bars = [bar for found in counts.values() for bar in make_bars(edges, found, "{:.4g} to {:.4g}\n{:,}")]
        return Chart(title, x_label, bars=bars, log_x=log_x, marks=marks or {})
    middles = np.sqrt(edges[:-1] * edges[1:]) if log_x else (edges[:-1] + edges[1:]) / 2
    lines = make_lines({name: Series(middles, 100 * found / found.sum()) for name, found in counts.items()})
    y_range = (0.0, 1.05 * max((float(line.series.y.max()) for line in lines), default=1.0))  # shares, from 0
    return Chart(f"{title}, %", x_label, lines=lines, log_x=log_x, marks=marks or {}, y_range=y_range, legend=True)


def scatter(title: str, x: np.ndarray, y: np.ndarray, x_label: str, y_label: str, *, log: bool = False) -> Chart:
    """Return a chart of points; of more than ``MOST_POINTS`` a random part, always the same.

    Args:
        title: what the chart shows.
        x: values across.
        y: values upwards.
        x_label: what they are.
        y_label: what they are.
        log: both axes logarithmic; points that are not above 0 are left out.
    """
    if log:
        x, y = x[(x > 0) & (y > 0)], y[(x > 0) & (y > 0)]
    if len(x) > MOST_POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(x), MOST_POINTS, replace=False))
        x, y = x[chosen], y[chosen]
    return Chart(title, x_label, y_label, points=Series(x, y), log_x=log, log_y=log)


def ticks(low: float, high: float, most: int = 6, *, log: bool = False, whole: bool = False) -> list[float]:
    """Return about ``most`` round numbers of a range; on a logarithmic axis 1, 2 and 5 times powers of ten."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
        found = [value for value in found if low <= value <= high]
        if len(found) <= 2 * most:
            return found
        powers = [value for value in found if f"{value:e}".startswith("1")]
        return powers[:: math.ceil(len(powers) / most)]
    rough = (high - low) / most
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * decade for digit in (1, 2, 2.5, 5, 10) if digit * decade >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def short_number(value: float, _place: object = None) -> str:
    """Return ``1.5k`` for 1500, ``0.05`` as it is."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{suffix}"
    return f"{value:g}"


def _wide(low: float, high: float) -> tuple[float, float]:
    """Return a range that has a width."""
    if high > low:
        return low, high
    margin = 0.5 * abs(low) or 1.0
    return low - margin, high + margin


def _padded(low: float, high: float, *, log: bool) -> tuple[float, float]:
    """Return a range with room at both ends, so that no point lies on the edge."""
    if log:
        ratio = (high / low) ** 0.06 if high > low else 1.5
        return low / ratio, high * ratio
    low, high = _wide(low, high)
    margin = 0.06 * (high - low)
    return low - margin, high + margin
