"""Plots as SVG for pages."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from detrkit.visual.plots import MOST_BARS, MOST_POINTS, bars, heat_map, histogram, scatter

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.lognormal(4, 1, 200)
PLOTS = {
    "bars": lambda title: bars(title, {"cat": 3, "dog": 5}, "objects"),
    "logarithmic bars": lambda title: bars(title, {"cat": 3, "dog": 5000}, log=True),
    "histogram": lambda title: histogram(
        title, {"all": VALUES}, np.geomspace(1, 999, 20), "px", True, {"small": 32}
    ),
    "two histograms": lambda title: histogram(title, {"a": VALUES, "b": VALUES + 9}, np.linspace(0, 999, 20)),
    "heat map": lambda title: heat_map(title, RANDOM.random((5, 5)), "%"),
    "scatter": lambda title: scatter(title, VALUES, VALUES, "width", "height", log=True),
    "no bars": lambda title: bars(title, {}),
    "no values": lambda title: histogram(title, {"a": np.zeros(0), "b": np.zeros(0)}, np.linspace(0, 9, 4)),
    "empty heat map": lambda title: heat_map(title, np.zeros((4, 4))),
    "no points": lambda title: scatter(title, np.zeros(0), np.zeros(0)),
    "no logarithmic points": lambda title: scatter(title, np.zeros(0), np.zeros(0), log=True),
    "logarithmic points at zero": lambda title: scatter(title, np.arange(3.0), np.arange(3.0)[::-1], log=True),
    "logarithmic bars at zero": lambda title: bars(title, {"cat": 0}, log=True),
}


def texts(svg: str) -> str:
    return " ".join(ElementTree.fromstring(svg).itertext())


@pytest.mark.parametrize("make", PLOTS.values(), ids=PLOTS)
def test_a_plot_is_one_svg_element_in_the_pages_colour(make):
    plot = make("A title & more")
    root = ElementTree.fromstring(plot.svg)
    assert root.tag.endswith("svg")
    assert root.attrib["aria-label"] == "A title & more"
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & set(root.attrib)
    assert "#010203" not in plot.svg
    assert "currentColor" in plot.svg
    assert "<style" not in plot.svg
    assert "#ffffff" not in plot.svg.split("<image")[0], "a background would show in the dark"


def test_equal_plots_are_equal_and_ids_are_never_shared():
    first, again, other = (PLOTS["histogram"](title).svg for title in ("one", "one", "two"))
    assert first == again
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, other)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_names_are_plain_text():
    svg = bars("t", {"$x^2$ <b>&猫\ud800": 1}, "a <i>").svg
    assert "$x^2$ <b>&猫\N{REPLACEMENT CHARACTER}" in texts(svg)
    assert "a <i>" in texts(svg)


def test_many_bars_are_cut_and_counted():
    plot = bars("t", {f"class {number}": number for number in range(MOST_BARS + 7)}, "objects")
    assert "7 more not shown" in texts(plot.svg)
    assert f"class {MOST_BARS - 1}" in texts(plot.svg)
    assert f"class {MOST_BARS}" not in texts(plot.svg)


def test_values_beyond_the_bins_are_counted_in_the_last():
    svg = histogram("t", {"a": np.array([2.0, 500, 500, 500])}, np.linspace(0, 10, 3)).svg
    assert "3" in texts(svg).split(), "the axis of counts reaches the three of the last bin"
    assert "3" not in texts(histogram("t", {"a": np.array([2.0])}, np.linspace(0, 10, 3)).svg).split()


def test_thousands_of_points_stay_small():
    many = RANDOM.random(20 * MOST_POINTS)
    assert len(scatter("t", many, many).svg) < 200_000
