"""Charts of a page, drawn as SVG: all is there without a script, which only shows what is under the pointer.

Whatever answers to the pointer and to arrow keys carries its text in ``data-tip``.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from detrkit.visual.chart import COLORS, Chart, Line, Series, short_number, ticks
from detrkit.visual.text import escaped, shortened

DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Of lines beyond the colours."""
MOST_BARS = 30
MOST_VALUES = 600
"""Values of a drawn line; a longer one keeps the least and the greatest value of each stretch."""

_MOST_TIPS = 80
_MOST_TOLD = 12
_MOST_DOTS = 30
_MOST_NUMBERED = 12
"""Rows of a grid that has room for figures in its cells."""
_WIDTH, _HEIGHT = 560, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 16, 8, 40
_CELL, _NUMBERED_CELL, _NAME, _HEAD = 20, 44, 150, 110


@dataclasses.dataclass(frozen=True)
class Legend:
    """Buttons that switch lines off and on, in all charts of the page; the names of the lines by number."""

    names: Sequence[str]

    def html(self) -> str:
        """Return the element."""
        items = "".join(
            f'<li><button type="button" aria-pressed="true" data-name="{escaped(name)}">'
            f'<i style="background:{COLORS[number % len(COLORS)]}"></i>{escaped(shortened(name, 48))}'
            "</button></li>"
            for number, name in enumerate(self.names)
        )
        return f'<ul class="legend">{items}</ul>'


@dataclasses.dataclass(frozen=True)
class BarChart:
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

    def html(self) -> str:
        """Return the element."""
        shown = list(self.values.items())[:MOST_BARS]
        lengths = [math.log10(1 + value) if self.log else value for _, value in shown]
        greatest = max(lengths, default=0.0) or 1.0
        rows = "".join(
            f'<tr><th scope="row">{escaped(shortened(name, 44))}</th>'
            f'<td style="--share:{100 * length / greatest:.1f}%">{value:,.{self.digits}f}</td></tr>'
            for (name, value), length in zip(shown, lengths, strict=True)
        )
        left_out = len(self.values) - len(shown)
        more = f" ({left_out} more not shown)" if left_out else ""
        caption = escaped(f"{self.title}{f', {self.label}' if self.label else ''}{more}")
        return f'<figure><figcaption>{caption}</figcaption><table class="hbars">{rows}</table></figure>'


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """A map of an image: the more there is, the deeper the colour.

    Args:
        title: what the map shows.
        grid: values, ``[rows, columns]``, row 0 on top.
        aspect: width of the whole over its height.
    """

    title: str
    grid: np.ndarray
    aspect: float = 1.0

    def html(self) -> str:
        """Return the element."""
        depth = 255 * self.grid / max(float(self.grid.max(initial=0)), 1e-12)
        pixels = np.full((*self.grid.shape, 4), (59, 130, 246, 0), dtype=np.uint8)
        pixels[..., 3] = depth.round().astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        source = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
        title = escaped(self.title)
        image = f'<img class="heat" style="aspect-ratio:{self.aspect:.3f}" alt="{title}" src="{source}">'
        return f"<figure><figcaption>{title}</figcaption>{image}</figure>"


@dataclasses.dataclass(frozen=True)
class Charts:
    """Charts side by side, as many in a row as fit; those with nothing to draw are left out."""

    charts: Sequence[Chart | BarChart | HeatMap]

    def html(self) -> str:
        """Return their element."""
        drawn = (chart_html(chart) if isinstance(chart, Chart) else chart.html() for chart in self.charts)
        return f'<div class="plots">{"".join(drawn)}</div>'


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a grid.

    Args:
        share: depth of its colour, 0 to 1.
        text: figure in it.
        tip: text under the pointer; none: it says nothing.
        kind: hit: as it should be; other: not.
    """

    share: float
    text: str = ""
    tip: str = ""
    kind: Literal["hit", "other"] = "hit"


@dataclasses.dataclass(frozen=True)
class CellGrid:
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

    def html(self) -> str:
        """Return the element."""
        numbered = len(self.rows) <= _MOST_NUMBERED
        side = _NUMBERED_CELL if numbered else _CELL
        width, height = _NAME + side * len(self.columns) + 60, _HEAD + side * len(self.rows) + 6
        parts = []
        for number, name in enumerate(self.columns):
            x, y = _NAME + side * (number + 0.5) + 4, _HEAD - 6
            parts.append(_text(x, y, shortened(name, 18), "start", f' transform="rotate(-50 {x:g} {y})"'))
        for number, (name, line) in enumerate(zip(self.rows, self.cells, strict=True)):
            y = _HEAD + side * number
            parts.append(_text(_NAME - 8, y + side / 2 + 4, shortened(name, 20), "end"))
            parts += [_cell(cell, _NAME + side * place, y, side, numbered) for place, cell in enumerate(line)]
        # Names of long grids must stay legible on a narrow screen: the grid scrolls rather than shrinks.
        style = f"max-width:{width}px;min-width:{min(width, max(round(0.72 * width), 300))}px"
        axes = f"Rows: {self.row_label}; columns: {self.column_label}." if self.row_label else ""
        return (
            f'<figure class="chart"><figcaption>{escaped(self.title)} {escaped(axes)}</figcaption>'
            f'<div class="pan"><svg viewBox="0 0 {width} {height}" style="{style}" tabindex="0" role="img" '
            f'data-columns="{len(self.columns)}" '
            f'aria-label="{escaped(self.title)}. Arrow keys read cells.">{"".join(parts)}</svg></div>'
            '<div class="tip" role="status" hidden></div></figure>'
        )


def chart_html(chart: Chart) -> str:
    """Return the figure of a chart; nothing if there is nothing to draw."""
    if chart.is_empty:
        return ""
    frame = _Frame(*chart.limits(), chart.log_x, chart.log_y)
    bottom = _HEIGHT - _BOTTOM
    lines = [dataclasses.replace(line, series=thinned(line.series)) for line in chart.lines]
    inner = _bars(chart, frame) + "".join(_line(line, frame) for line in lines) + _points(chart, frame)
    inner += _guides(chart, frame) + _line_tips(chart, lines, frame)
    # what lies outside of the axes is cut off
    clip = f'<svg x="0" y="0" width="{_WIDTH}" height="{bottom}" viewBox="0 0 {_WIDTH} {bottom}">{inner}</svg>'
    last = ", ".join(f"{line.name} {line.series.y[-1]:.4g}" for line in lines[:8] if len(line.series))
    told = f"{chart.title} over {chart.x_label}{f'; last: {last}' if last else ''}. Arrow keys read values."
    legend = Legend([line.name for line in chart.lines]).html() if chart.legend else ""
    return (
        f'<figure class="chart"><figcaption>{escaped(chart.title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" tabindex="0" role="img" data-columns="1" '
        f'aria-label="{escaped(told)}">'
        f'{_axes(chart, frame)}{clip}</svg><div class="tip" role="status" hidden></div>{legend}</figure>'
    )


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


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Where values lie in the drawing: range across and upwards, and what is logarithmic."""

    across: tuple[float, float]
    upwards: tuple[float, float]
    log_x: bool
    log_y: bool

    def x(self, values: np.ndarray) -> np.ndarray:
        return _LEFT + _share(values, *self.across, self.log_x) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, values: np.ndarray) -> np.ndarray:
        return _TOP + (1 - _share(values, *self.upwards, self.log_y)) * (_HEIGHT - _TOP - _BOTTOM)

    def places(self, series: Series) -> list[tuple[float, float]]:
        return list(zip(self.x(series.x).tolist(), self.y(series.y).tolist(), strict=True))


def _share(values: np.ndarray, low: float, high: float, log: bool) -> np.ndarray:
    if log:
        values, low, high = np.log(np.maximum(values, low / 10)), math.log(low), math.log(high)
    return np.asarray((values - low) / (high - low))


def _bars(chart: Chart, frame: _Frame) -> str:
    if not chart.bars:
        return ""
    lefts = frame.x(np.array([bar.start for bar in chart.bars])) + 0.5
    rights = frame.x(np.array([bar.end for bar in chart.bars])) - 0.5
    tops = frame.y(np.array([bar.value for bar in chart.bars]))
    floor = _HEIGHT - _BOTTOM
    parts = []
    for bar, left, right, top in zip(chart.bars, lefts, rights, tops, strict=True):
        place = f'x="{left:.1f}" width="{max(right - left, 0.5):.1f}"'
        parts.append(f'<rect class="mark" {place} y="{top:.1f}" height="{floor - top:.1f}"/>')
        # the whole column answers, so that a low bar can be hit
        hit = f'{place} y="{_TOP}" height="{floor - _TOP}"'
        parts.append(f'<rect class="hit" {hit} data-tip="{_tip(bar.tip)}"/>')
    return "".join(parts)


def _line(line: Line, frame: _Frame) -> str:
    color = COLORS[line.number % len(COLORS)]
    dashes = DASHES[line.number // len(COLORS) % len(DASHES)]
    style = f' stroke-dasharray="{dashes}"' if dashes else ""
    name = f'data-name="{escaped(line.name)}"'
    drawn = f'<path class="line" {name} stroke="{color}"{style} d="{_path(line.series, frame)}"/>'
    if line.raw is not None:
        raw = _path(thinned(line.raw), frame)
        drawn = f'<path class="raw" {name} stroke="{color}" d="{raw}"/>{drawn}'
    if len(line.series) <= _MOST_DOTS:
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in frame.places(line.series))
        drawn += f'<g {name} fill="{color}">{dots}</g>'
    return drawn


def _path(series: Series, frame: _Frame) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in frame.places(series)) if len(series) else ""


def _line_tips(chart: Chart, lines: Sequence[Line], frame: _Frame) -> str:
    """Return columns that tell the values of all lines near them."""
    known = [line for line in lines if len(line.series)]
    if not known:
        return ""
    xs = np.unique(np.concatenate([line.series.x for line in known]))
    if len(xs) > _MOST_TIPS:
        xs = xs[np.linspace(0, len(xs) - 1, _MOST_TIPS).round().astype(int)]
    places = frame.x(xs)
    borders = np.concatenate([[_LEFT], (places[:-1] + places[1:]) / 2, [_WIDTH - _RIGHT]])
    near = 0.02 * (chart.limits()[0][1] - chart.limits()[0][0])
    parts = []
    for x, left, right in zip(xs.tolist(), borders[:-1], borders[1:], strict=True):
        told = f"{chart.x_label} {x:.6g}"
        for line in known[:_MOST_TOLD]:
            nearest = int(np.abs(line.series.x - x).argmin())
            if abs(line.series.x[nearest] - x) <= near:
                told += f"\n{line.name}: {line.series.y[nearest]:.4g}"
        place = f'x="{left:.1f}" width="{right - left:.1f}" y="{_TOP}" height="{_HEIGHT - _BOTTOM - _TOP}"'
        parts.append(f'<rect class="hit" {place} data-tip="{_tip(told)}"/>')
    return "".join(parts)


def _tip(text: str) -> str:
    return "&#10;".join(map(escaped, text.split("\n")))


def _points(chart: Chart, frame: _Frame) -> str:
    places = frame.places(chart.points)
    if not chart.point_names:
        # a path of thousands of dots is small
        return f'<path class="cloud" d="{"".join(f"M{x:.0f} {y:.0f}h0" for x, y in places)}"/>' if places else ""
    parts = []
    for number, (name, (x, y)) in enumerate(zip(chart.point_names, places, strict=True)):
        on_the_right = x > _WIDTH / 2
        tip = f"{name}\n{chart.x_label} {chart.points.x[number]:.4g}\n{chart.y_label} {chart.points.y[number]:.4g}"
        color = COLORS[number % len(COLORS)]
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{color}" data-tip="{_tip(tip)}"/>')
        # names of neighbours stand above and below
        height = y + (-9 if number % 2 else 17)
        anchor = "end" if on_the_right else "start"
        parts.append(_text(x + (-9 if on_the_right else 9), height, shortened(name), anchor))
    return "".join(parts)


def _axes(chart: Chart, frame: _Frame) -> str:
    floor = _HEIGHT - _BOTTOM
    y_ticks = ticks(*frame.upwards, 5, log=chart.log_y)
    x_ticks = ticks(*frame.across, log=chart.log_x, whole=chart.x_label == "step")
    parts = []
    for value, y in zip(y_ticks, frame.y(np.array(y_ticks)), strict=True):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 6, y + 4, short_number(value), "end"))
    for value, x in zip(x_ticks, frame.x(np.array(x_ticks)), strict=True):
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{floor}"/>')
        parts.append(_text(x, floor + 16, short_number(value), "middle"))
    if chart.y_label:
        y = _TOP + (floor - _TOP) / 2
        parts.append(_text(11, y, chart.y_label, "middle", f' transform="rotate(-90 11 {y:g})"'))
    return "".join(parts) + _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, chart.x_label, "middle")


def _guides(chart: Chart, frame: _Frame) -> str:
    """Return lines that values are compared with."""
    floor = _HEIGHT - _BOTTOM
    parts = []
    for name, value in chart.marks.items():
        x = float(frame.x(np.array([value]))[0])
        parts.append(f'<line class="guide" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{floor}"/>')
        parts.append(_text(x + 4, _TOP + 11, name, "start"))
    if chart.diagonal:
        (x0, x1), (y0, y1) = (frame.x(np.array(frame.across)), frame.y(np.array(frame.across)))
        parts.append(f'<line class="guide" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escaped(text)}</text>'


def _cell(cell: Cell, x: int, y: int, side: int, numbered: bool) -> str:
    kind = "mark" if cell.kind == "hit" else "mark other"
    opacity = 0.0 if cell.share <= 0 else 0.1 + 0.75 * min(cell.share, 1.0)
    place = f'x="{x + 1}" y="{y + 1}" width="{side - 2}" height="{side - 2}"'
    rect = f'<rect class="{kind}" {place} fill-opacity="{opacity:.2f}" data-tip="{_tip(cell.tip)}"/>'
    frame = f'<rect class="grid" {place} fill="none" pointer-events="none"/>'
    if not numbered or not cell.text:
        return rect + frame
    return rect + frame + _text(x + side / 2, y + side / 2 + 4, cell.text, "middle", ' class="cell"')
