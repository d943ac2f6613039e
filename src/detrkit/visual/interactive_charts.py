"""Bars and grids of cells for a page that tell their figures under the pointer and by arrow keys.

Drawn here as SVG, so that they are there without a script too; the script only shows what each mark carries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.ticker import MaxNLocator

from detrkit.visual.plots import short_number
from detrkit.visual.text import escaped, shortened

SCRIPT = """
document.querySelectorAll('.marks').forEach(function (figure) {
  var svg = figure.querySelector('svg'), tip = figure.querySelector('.tip'), at = -1;
  var marks = Array.from(svg.querySelectorAll('[data-tip]')), columns = parseInt(svg.dataset.columns, 10);
  function show(place) {
    if (at >= 0) marks[at].classList.remove('at');
    at = place;
    tip.hidden = at < 0;
    if (at < 0) return;
    marks[at].classList.add('at');
    tip.textContent = marks[at].dataset.tip;
    var box = marks[at].getBoundingClientRect(), all = figure.getBoundingClientRect();
    var across = (box.left + box.right) / 2 - all.left, right = across > all.width / 2;
    tip.style.left = right ? 'auto' : Math.max(0, across + 12) + 'px';
    tip.style.right = right ? Math.max(0, all.width - across + 12) + 'px' : 'auto';
    tip.style.top = Math.max(0, box.top - all.top - (svg.dataset.above ? 34 : 0)) + 'px';
  }
  svg.addEventListener('pointermove', function (event) {
    show(marks.indexOf(event.target.closest('[data-tip]')));
  });
  svg.addEventListener('pointerleave', function () { show(-1); });
  svg.addEventListener('blur', function () { show(-1); });
  svg.addEventListener('keydown', function (event) {
    var moves = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -1e9, End: 1e9};
    var move = moves[event.key];
    if (!move || !marks.length) return;
    event.preventDefault();
    show(Math.max(0, Math.min(marks.length - 1, at < 0 ? 0 : at + move)));
  });
});
"""

STYLES = """
.marks{position:relative}
.marks text{fill:currentColor;font-size:12px}
.marks .grid{stroke:currentColor;opacity:.13}
.marks .mark{fill:var(--accent)}
.marks .mark.other{fill:var(--warn)}
.marks .mark.empty{fill:none;pointer-events:all}
.marks .guide{stroke:currentColor;opacity:.85;stroke-dasharray:5 4}
.marks .at{stroke:currentColor;stroke-width:2}
.marks .pan{overflow-x:auto}
@media print{.marks .pan{overflow:visible}.marks svg{min-width:0!important}}
.marks .cell{font-size:11px;pointer-events:none}
"""

_WIDTH, _HEIGHT = 560, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 10, 8, 40
_CELL, _NAME, _HEAD = 20, 150, 110
_MOST_NUMBERED = 12
"""Rows of a grid that has room for figures in its cells."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of a plot over a range.

    Args:
        start: Where it begins on the axis.
        end: Where it ends.
        value: Its height.
        tip: What it says under the pointer.
    """

    start: float
    end: float
    value: float
    tip: str


@dataclasses.dataclass(frozen=True)
class BarPlot:
    """Upright bars over ranges of a number, such as a histogram.

    Args:
        title: What it shows.
        bars: Left to right, side by side.
        x_label: What runs along the axis.
        y_label: What is counted.
        top: Of the upward axis; the greatest bar if not given.
        diagonal: Draw the line on which height equals place.
    """

    title: str
    bars: Sequence[Bar]
    x_label: str = ""
    y_label: str = ""
    top: float | None = None
    diagonal: bool = False
    script = SCRIPT
    styles = STYLES

    def html(self) -> str:
        """Its element."""
        x0 = min((bar.start for bar in self.bars), default=0.0)
        x1 = max((bar.end for bar in self.bars), default=1.0)
        high = self.top if self.top is not None else 1.05 * max((bar.value for bar in self.bars), default=0.0)
        high = high or 1.0

        def across(value: float) -> float:
            return _LEFT + (value - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)

        def up(value: float) -> float:
            return _TOP + (high - value) / high * (_HEIGHT - _TOP - _BOTTOM)

        parts = [_grid_line(up(value), value) for value in MaxNLocator(5).tick_values(0, high) if value <= high]
        for bar in self.bars:
            left, width = across(bar.start) + 0.5, across(bar.end) - across(bar.start) - 1
            top = up(bar.value)
            place = f'x="{left:.1f}" width="{max(width, 0.5):.1f}"'
            parts.append(f'<rect class="mark" {place} y="{top:.1f}" height="{up(0) - top:.1f}"/>')
            # the whole column answers, so that a low bar can be hit
            hit = f'{place} y="{_TOP}" height="{up(0) - _TOP:.1f}"'
            parts.append(f'<rect class="mark empty" {hit} data-tip="{escaped(bar.tip)}"/>')
        if self.diagonal:
            ends = f'x1="{across(x0):.1f}" y1="{up(x0):.1f}" x2="{across(x1):.1f}" y2="{up(x1):.1f}"'
            parts.append(f'<line class="guide" {ends}/>')
        parts += [
            _x_tick(across(value), value) for value in MaxNLocator(6).tick_values(x0, x1) if x0 <= value <= x1
        ]
        parts.append(_x_name(self.x_label))
        shown = f"{self.title} ({self.y_label})" if self.y_label else self.title
        return (
            f'<div class="plots"><figure class="marks"><figcaption>{escaped(shown)}</figcaption>'
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" tabindex="0" role="img" data-columns="1" '
            f'aria-label="{escaped(self.title)}. Arrow keys read values.">{"".join(parts)}</svg>'
            '<div class="tip" role="status" hidden></div></figure></div>'
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a grid.

    Args:
        share: How deep its colour is, 0 to 1.
        text: Its figure.
        tip: What it says under the pointer; none: it says nothing.
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
        title: What it shows.
        rows: Names, top to bottom.
        columns: Names, left to right.
        cells: ``[rows][columns]``.
        row_label: What the rows are.
        column_label: What the columns are.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    row_label: str = ""
    column_label: str = ""
    script = SCRIPT
    styles = STYLES

    def html(self) -> str:
        """Its element."""
        numbered = len(self.rows) <= _MOST_NUMBERED
        side = 44 if numbered else _CELL
        width, height = _NAME + side * len(self.columns) + 60, _HEAD + side * len(self.rows) + 6
        parts = []
        for number, name in enumerate(self.columns):
            x, y = _NAME + side * (number + 0.5) + 4, _HEAD - 6
            parts.append(
                f'<text x="{x:g}" y="{y}" transform="rotate(-50 {x:g} {y})">{escaped(shortened(name, 18))}</text>'
            )
        for number, (name, line) in enumerate(zip(self.rows, self.cells, strict=True)):
            y = _HEAD + side * number
            middle = y + side / 2 + 4
            parts.append(
                f'<text x="{_NAME - 8}" y="{middle:g}" text-anchor="end">{escaped(shortened(name, 20))}</text>'
            )
            parts += [_cell(cell, _NAME + side * place, y, side, numbered) for place, cell in enumerate(line)]
        # Names of long grids must stay legible on a narrow screen: the grid scrolls rather than shrinks.
        style = f"max-width:{width}px;min-width:{min(width, max(round(0.72 * width), 300))}px"
        axes = f"Rows: {self.row_label}; columns: {self.column_label}." if self.row_label else ""
        return (
            f'<figure class="marks"><figcaption>{escaped(self.title)} {escaped(axes)}</figcaption>'
            f'<div class="pan"><svg viewBox="0 0 {width} {height}" style="{style}" tabindex="0" role="img" '
            f'data-columns="{len(self.columns)}" data-above="1" '
            f'aria-label="{escaped(self.title)}. Arrow keys read cells.">{"".join(parts)}</svg></div>'
            '<div class="tip" role="status" hidden></div></figure>'
        )


def _cell(cell: Cell, x: int, y: int, side: int, numbered: bool) -> str:
    kind = "mark" if cell.kind == "hit" else "mark other"
    opacity = 0.0 if cell.share <= 0 else 0.1 + 0.75 * float(np.clip(cell.share, 0, 1))
    place = f'x="{x + 1}" y="{y + 1}" width="{side - 2}" height="{side - 2}"'
    rect = f'<rect class="{kind}" {place} fill-opacity="{opacity:.2f}" data-tip="{escaped(cell.tip)}"/>'
    frame = f'<rect class="grid" {place} fill="none" pointer-events="none"/>'
    text = ""
    if numbered and cell.text:
        text = (
            f'<text class="cell" x="{x + side / 2:g}" y="{y + side / 2 + 4:g}" text-anchor="middle">'
            f"{escaped(cell.text)}</text>"
        )
    return rect + frame + text


def _grid_line(place: float, value: float) -> str:
    line = f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
    return (
        line
        + f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{short_number(round(value, 10))}</text>'
    )


def _x_tick(place: float, value: float) -> str:
    text = short_number(round(value, 10))
    return f'<text x="{place:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{text}</text>'


def _x_name(label: str) -> str:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return f'<text x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{escaped(label)}</text>'
