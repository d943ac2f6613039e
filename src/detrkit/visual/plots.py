"""Plots as SVG that lies inside a page: its text and axes take the page's colour, light or dark.

Class names and the like come from strangers; nothing in them is read as mathematics or as markup.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import matplotlib.style
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from detrkit.visual.chart import short_number
from detrkit.visual.text import escaped, printable, shortened

COLORS = ("#3b82f6", "#e8710a", "#1a9c6b", "#a259e6", "#d6336c", "#0c9ab8", "#8a8f00", "#868e96")
"""Of series; each has a contrast of 3 or more on white and on near-black."""
MOST_BARS = 30

_INK = "#010203"  # stands for the page's text colour until the SVG is done
_WIDTH = 5.6  # inches; pages show it at any width
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": _INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.6,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.alpha": 0.16,
    "grid.color": _INK,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "xtick.labelsize": 8,
    "ytick.color": _INK,
    "ytick.labelsize": 8,
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """A picture for a page.

    Args:
        svg: The element, ready to stand inside HTML.
        title: What it shows; also what a screen reader says.
    """

    svg: str
    title: str


@dataclasses.dataclass(frozen=True)
class Plots:
    """Plots side by side, as many in a row as fit."""

    plots: Sequence[Plot]

    def html(self) -> str:
        """Return their element."""
        figures = (
            f"<figure><figcaption>{escaped(plot.title)}</figcaption>{plot.svg}</figure>" for plot in self.plots
        )
        return f'<div class="plots">{"".join(figures)}</div>'


def bars(title: str, values: Mapping[str, float], label: str = "", log: bool = False) -> Plot:
    """Horizontal bars in the given order, the first on top; beyond ``MOST_BARS`` the rest is left out and counted.

    Args:
        title: What the plot shows.
        values: By name.
        label: What the numbers count.
        log: Logarithmic, where one bar would dwarf the others.
    """
    shown = list(values.items())[:MOST_BARS]
    log = log and any(value > 0 for _, value in shown)
    left_out = len(values) - len(shown)

    def draw(axes: Axes) -> None:
        rows = np.arange(len(shown))
        numbers = [value for _, value in shown]
        axes.barh(rows, numbers, height=0.72, color=COLORS[0], log=log)
        axes.set_yticks(rows, [shortened(name) for name, _ in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label + (f" ({left_out} more not shown)" if left_out else ""))
        _number_axis(axes.xaxis, log)

    return svg_plot(title, draw, height=0.8 + 0.17 * max(len(shown), 3))


def svg_plot(title: str, draw: Callable[[Axes], None], height: float, width: float = _WIDTH) -> Plot:
    """A plot in the common style, of anything that ``draw`` puts on the axes; height and width in inches."""
    with _style(title):
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        for text in figure.findobj(Text):
            text.set_text(printable(text.get_text()))
        content = io.StringIO()
        no_dates = {"Date": None, "Creator": None, "Format": None, "Type": None}
        canvas.print_figure(content, format="svg", dpi=150, metadata=no_dates)
    return Plot(_inline(content.getvalue(), title), title)


@contextlib.contextmanager
def _style(title: str) -> Iterator[None]:
    # Ids inside the SVG come from the salt: two plots of a page must not share any.
    salt = hashlib.sha256(title.encode("utf-8", "replace")).hexdigest()
    with matplotlib.style.context({**_STYLE, "svg.hashsalt": salt}, after_reset=True), warnings.catch_warnings():
        # The browser's fonts draw the text; that matplotlib's lacks a letter does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _inline(svg: str, title: str) -> str:
    """The SVG element alone, with the page's text colour and without names that repeat from plot to plot."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.S)
    # A style would reach the whole page.
    element = re.sub(r"<!--.*?-->|<style.*?</style>", "", element, flags=re.S)
    element = re.sub(r' id="(?:figure|axes|patch|text|line2d|matplotlib|xtick|ytick|legend)[\w.]*"', "", element)
    element = element.replace(_INK, "currentColor")
    element = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", element, count=1)
    element = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", element, count=1)
    return element.replace("<svg ", f'<svg role="img" aria-label="{escaped(title)}" ', 1)


def _number_axis(axis: Axis, log: bool) -> None:
    """Few and short numbers, without the mathematics that matplotlib writes powers of ten in."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if log else MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(short_number))
    axis.set_minor_formatter(NullFormatter())
