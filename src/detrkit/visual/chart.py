"""Charts for a page that answer to the pointer: values under it, and lines that can be switched off.

Drawn here as SVG, so that they are there without a script too; the script only reads what is drawn.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from detrkit.visual.curves import DASHES, Line, Panel
from detrkit.visual.history import Series
from detrkit.visual.plots import COLORS, short_number
from detrkit.visual.text import escaped, printable, shortened

MOST_POINTS = 600
"""Of a drawn line; a longer one keeps the least and the greatest value of each stretch."""

_WIDTH, _HEIGHT = 560, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 10, 8, 40

SCRIPT = """
document.querySelectorAll('.chart').forEach(function (chart) {
  var svg = chart.querySelector('svg'), tip = chart.querySelector('.tip'), rule = chart.querySelector('.rule');
  var data = JSON.parse(chart.querySelector('script').textContent), at = -1;
  var every = [];
  data.lines.forEach(function (line) { every = every.concat(line.x); });
  every = Array.from(new Set(every)).sort(function (a, b) { return a - b; });
  function nearest(list, value) {
    var low = 0, high = list.length - 1;
    while (high - low > 1) {
      var middle = (low + high) >> 1;
      if (list[middle] < value) low = middle; else high = middle;
    }
    return list.length && Math.abs(list[high] - value) < Math.abs(list[low] - value) ? high : low;
  }
  function number(value) {
    var size = Math.abs(value);
    return size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(2) : String(+value.toPrecision(4));
  }
  function show(x) {
    at = nearest(every, x);
    var rows = [];
    data.lines.forEach(function (line, index) {
      var drawn = chart.querySelector('[data-line="' + index + '"]');
      if (drawn.classList.contains('off') || !line.x.length) return;
      var place = nearest(line.x, every[at]);
      if (Math.abs(line.x[place] - every[at]) <= 0.02 * (data.x1 - data.x0)) rows.push([line, line.y[place]]);
    });
    var across = data.left + (every[at] - data.x0) / (data.x1 - data.x0) * data.inner;
    rule.setAttribute('x1', across);
    rule.setAttribute('x2', across);
    rule.style.visibility = 'visible';
    tip.textContent = '';
    var head = document.createElement('b');
    head.textContent = data.label + ' ' + number(every[at]);
    tip.appendChild(head);
    rows.slice(0, 12).forEach(function (row) {
      var item = document.createElement('div'), mark = document.createElement('i');
      mark.style.background = row[0].color;
      item.appendChild(mark);
      item.appendChild(document.createTextNode(row[0].name + ': ' + number(row[1])));
      tip.appendChild(item);
    });
    tip.hidden = false;
    var share = across / data.width;
    tip.style.left = share < 0.55 ? (100 * share + 2) + '%' : 'auto';
    tip.style.right = share < 0.55 ? 'auto' : (100 * (1 - share) + 2) + '%';
  }
  function hide() { tip.hidden = true; rule.style.visibility = 'hidden'; at = -1; }
  svg.addEventListener('pointermove', function (event) {
    var box = svg.getBoundingClientRect();
    var x = (event.clientX - box.left) / box.width * data.width;
    if (every.length) show(data.x0 + (x - data.left) / data.inner * (data.x1 - data.x0));
  });
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('blur', hide);
  svg.addEventListener('keydown', function (event) {
    var move = {ArrowLeft: -1, ArrowRight: 1, Home: -every.length, End: every.length}[event.key];
    if (!move || !every.length) return;
    event.preventDefault();
    show(every[Math.max(0, Math.min(every.length - 1, at + move))]);
  });
});
document.querySelectorAll('.legend button').forEach(function (button) {
  button.addEventListener('click', function () {
    var on = button.getAttribute('aria-pressed') === 'true';
    document.querySelectorAll('.legend button').forEach(function (other) {
      if (other.dataset.name === button.dataset.name) other.setAttribute('aria-pressed', String(!on));
    });
    document.querySelectorAll('[data-name]').forEach(function (line) {
      if (line.dataset.name === button.dataset.name && line.tagName !== 'BUTTON') line.classList.toggle('off', on);
    });
  });
});
"""

STYLES = """
.chart{position:relative}
.chart svg{touch-action:pan-y}
.chart .grid{stroke:currentColor;opacity:.13}
.chart text{fill:currentColor;font-size:12px}
.chart .line{fill:none;stroke-width:1.8}
.chart .raw{fill:none;stroke-width:1;opacity:.28}
.chart .off{display:none}
.chart .rule{stroke:currentColor;opacity:.45;visibility:hidden}
.tip i,.legend i{display:inline-block;width:.7rem;height:.7rem;border-radius:.15rem;margin-right:.4rem}
.legend{display:flex;flex-wrap:wrap;gap:.25rem .5rem;list-style:none;margin:.25rem 0;padding:0;font-size:.85rem}
.legend button{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);border-radius:1rem;
padding:.1rem .7rem;cursor:pointer;overflow-wrap:anywhere;text-align:left}
.legend button[aria-pressed=false]{opacity:.45;text-decoration:line-through}
"""


@dataclasses.dataclass(frozen=True)
class Legend:
    """Buttons that switch lines off and on, in all charts of the page.

    Args:
        names: Of the lines, by their number.
    """

    names: Sequence[str]
    script = SCRIPT
    styles = STYLES

    def html(self) -> str:
        """Its element."""
        return _legend([(name, number) for number, name in enumerate(self.names)])


@dataclasses.dataclass(frozen=True)
class Charts:
    """Charts side by side, as many in a row as fit.

    Args:
        panels: What they show.
    """

    panels: Sequence[Panel]
    script = SCRIPT
    styles = STYLES

    def html(self) -> str:
        """Their element."""
        return f'<div class="plots">{"".join(_chart(panel) for panel in self.panels)}</div>'


def thinned(series: Series, most: int = MOST_POINTS) -> Series:
    """A series of at most ``most`` points that keeps the least and the greatest value of each stretch."""
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
    """Where values lie in the drawing."""

    x0: float
    x1: float
    y0: float
    y1: float
    log: bool

    def x(self, values: np.ndarray) -> np.ndarray:
        return _LEFT + (values - self.x0) / (self.x1 - self.x0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, values: np.ndarray) -> np.ndarray:
        low, high = self.y0, self.y1
        if self.log:
            values, low, high = np.log(np.maximum(values, low / 10)), math.log(low), math.log(high)
        return _TOP + (high - values) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _chart(panel: Panel) -> str:
    (x0, x1), (y0, y1) = panel.limits()
    frame = _Frame(x0, x1, y0, y1, panel.log)
    lines = [(line, thinned(line.series)) for line in panel.lines]
    drawn = "".join(_drawn(line, series, frame, number) for number, (line, series) in enumerate(lines))
    data = {
        "label": panel.x_label,
        "left": _LEFT,
        "inner": _WIDTH - _LEFT - _RIGHT,
        "width": _WIDTH,
        "x0": x0,
        "x1": x1,
        "lines": [
            {
                "name": printable(line.name),
                "color": COLORS[line.number % len(COLORS)],
                "x": [float(f"{value:.7g}") for value in series.x],
                "y": [float(f"{value:.5g}") for value in series.y],
            }
            for line, series in lines
        ],
    }
    # "<" could end the element that holds the data
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    top, bottom = _TOP, _HEIGHT - _BOTTOM
    clip = f'<svg x="0" y="0" width="{_WIDTH}" height="{bottom}" viewBox="0 0 {_WIDTH} {bottom}">{drawn}</svg>'
    names = [(line.name, line.number) for line in panel.lines]
    return (
        f'<figure class="chart"><figcaption>{escaped(panel.title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" tabindex="0" role="img" aria-label="{escaped(_told(panel))}">'
        f'{_axes(panel, frame)}{clip}<line class="rule" y1="{top}" y2="{bottom}"/></svg>'
        f'<div class="tip" hidden></div>{_legend(names) if panel.parts else ""}'
        f'<script type="application/json">{text}</script></figure>'
    )


def _drawn(line: Line, series: Series, frame: _Frame, number: int) -> str:
    color = COLORS[line.number % len(COLORS)]
    dashes = DASHES[line.number // len(COLORS) % len(DASHES)]
    style = f' stroke-dasharray="{dashes}"' if dashes else ""
    name = escaped(line.name)
    raw = ""
    if line.raw is not None:
        raw = f'<path class="raw" data-name="{name}" stroke="{color}" d="{_path(thinned(line.raw), frame)}"/>'
    dots = ""
    if len(series) <= 30:
        points = zip(frame.x(series.x), frame.y(series.y), strict=True)
        circles = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points)
        dots = f'<g data-name="{name}" fill="{color}">{circles}</g>'
    attributes = f'data-line="{number}" data-name="{name}" stroke="{color}"{style}'
    return f'{raw}<path class="line" {attributes} d="{_path(series, frame)}"/>{dots}'


def _path(series: Series, frame: _Frame) -> str:
    points = zip(frame.x(series.x), frame.y(series.y), strict=True)
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _axes(panel: Panel, frame: _Frame) -> str:
    bottom = _HEIGHT - _BOTTOM
    upwards = LogLocator(subs=(1, 2, 5)) if panel.log else MaxNLocator(5)
    y_ticks = [y for y in upwards.tick_values(frame.y0, frame.y1) if frame.y0 <= y <= frame.y1]
    whole = panel.x_label == "step"
    x_ticks = [
        x for x in MaxNLocator(6, integer=whole).tick_values(frame.x0, frame.x1) if frame.x0 <= x <= frame.x1
    ]
    parts = []
    for value, place in zip(y_ticks, frame.y(np.array(y_ticks)), strict=True):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{short_number(value)}</text>')
    for value, place in zip(x_ticks, frame.x(np.array(x_ticks)), strict=True):
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{place:.1f}" y="{bottom + 16}" text-anchor="middle">{short_number(value)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{escaped(panel.x_label)}</text>')
    return "".join(parts)


def _legend(lines: Sequence[tuple[str, int]]) -> str:
    items = "".join(
        f'<li><button type="button" aria-pressed="true" data-name="{escaped(name)}">'
        f'<i style="background:{COLORS[number % len(COLORS)]}"></i>{escaped(shortened(name, 48))}</button></li>'
        for name, number in lines
    )
    return f'<ul class="legend">{items}</ul>'


def _told(panel: Panel) -> str:
    """What the chart shows, for who cannot see it."""
    last = ", ".join(f"{line.name} {line.series.y[-1]:.4g}" for line in panel.lines[:8])
    return f"{panel.title} over {panel.x_label}; last: {last}. Arrow keys read values."
