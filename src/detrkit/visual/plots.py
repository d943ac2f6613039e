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
from collections.abc import Callable, Iterator, Mapping

import matplotlib.style
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from detrkit.visual.text import escaped, printable, shortened

COLORS = ("#3b82f6", "#e8710a", "#1a9c6b", "#a259e6", "#d6336c", "#0c9ab8", "#8a8f00", "#868e96")
"""Of series; each has a contrast of 3 or more on white and on near-black."""
MOST_BARS = 30
MOST_POINTS = 5_000

_INK = "#010203"  # stands for the page's text colour until the SVG is done
_WIDTH = 5.6  # inches; pages show it at any width
_HEAT = LinearSegmentedColormap.from_list("heat", ("#3b82f600", "#3b82f6"))
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


def histogram(
    title: str,
    series: Mapping[str, np.ndarray],
    bins: np.ndarray,
    label: str = "",
    log_x: bool = False,
    marks: Mapping[str, float] | None = None,
) -> Plot:
    """How many values lie in each bin; several series as outlines in shares of each.

    Args:
        title: What the plot shows.
        series: Values by name; one is drawn filled and counted, more in percent.
        bins: Edges; values beyond are counted in the outermost bins.
        label: What the values are.
        log_x: Logarithmic axis of values.
        marks: Vertical lines by name, such as the limits of COCO's sizes.
    """
    edges = bins.tolist()

    def draw(axes: Axes) -> None:
        for number, (name, values) in enumerate(series.items()):
            inside = np.clip(values, bins[0], bins[-1])
            if len(series) == 1:
                axes.hist(inside, bins=edges, color=COLORS[0])
            else:
                weights = np.full(len(values), 100 / max(len(values), 1))
                axes.hist(
                    inside, bins=edges, weights=weights, histtype="step", lw=1.6, color=COLORS[number], label=name
                )
        if log_x:
            axes.set_xscale("log")
        axes.set_xlim(bins[0], bins[-1])
        _number_axis(axes.xaxis, log_x)
        axes.set_xlabel(label)
        axes.set_ylabel("" if len(series) == 1 else "%")
        _number_axis(axes.yaxis, False)
        for name, position in (marks or {}).items():
            axes.axvline(position, color=_INK, lw=0.8, ls=(0, (4, 3)))
            axes.annotate(
                name, (position, 1), xycoords=("data", "axes fraction"), xytext=(3, -8), textcoords="offset points"
            )
        if len(series) > 1:
            axes.legend(loc="best", fontsize=8)

    return svg_plot(title, draw, height=2.6)


def heat_map(title: str, grid: np.ndarray, label: str = "", aspect: float = 1.0) -> Plot:
    """Where values are high: the more, the deeper the colour; nothing where there is none.

    Args:
        title: What the plot shows.
        grid: ``[rows, columns]``, row 0 on top.
        label: What is counted.
        aspect: Width of the whole over its height.
    """

    def draw(axes: Axes) -> None:
        axes.imshow(grid, cmap=_HEAT, vmin=0, extent=(0, 100, 100, 0), aspect=1 / aspect, interpolation="nearest")
        axes.grid(visible=False)
        axes.set_xticks((0, 25, 50, 75, 100))
        axes.set_yticks((0, 25, 50, 75, 100))
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(True)

    return svg_plot(title, draw, height=3.4)


def scatter(
    title: str,
    x: np.ndarray,
    y: np.ndarray,
    x_label: str = "",
    y_label: str = "",
    log: bool = False,
    seed: int = 0,
) -> Plot:
    """Points; of more than ``MOST_POINTS`` a random part by ``seed``.

    Args:
        title: What the plot shows.
        x: Values across.
        y: Values upwards.
        x_label: What they are.
        y_label: What they are.
        log: Both axes logarithmic; points that are not above 0 are left out.
        seed: Of the choice.
    """
    if log:
        positive = (x > 0) & (y > 0)
        x, y, log = x[positive], y[positive], bool(positive.any())
    if len(x) > MOST_POINTS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(x), MOST_POINTS, replace=False))
        x, y = x[chosen], y[chosen]

    def draw(axes: Axes) -> None:
        # Thousands of vector points would make the page slow: they become one picture.
        axes.scatter(x, y, s=7, color=COLORS[0], alpha=0.35, lw=0, rasterized=len(x) > 500)
        if log:
            axes.set_xscale("log")
            axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            _number_axis(axis, log)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return svg_plot(title, draw, height=3.2)


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


def short_number(value: float, _position: object = None) -> str:
    """``1.5k`` for 1500, ``0.05`` as it is."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{suffix}"
    return f"{value:g}"
