"""Bars and grids of cells that answer to the pointer."""

from __future__ import annotations

import re

import pytest

from detrkit.visual.interactive_charts import Bar, BarPlot, Cell, CellGrid
from detrkit.visual.page import Section, render_page
from tests.unit.visual.test_page import HOSTILE, Elements


def found(html, name):
    return [attributes for tag, attributes in Elements(html).found if tag == name]


def test_a_bar_is_as_high_as_its_value_and_its_whole_column_answers():
    html = BarPlot("IoU", [Bar(0, 0.5, 2, "two"), Bar(0.5, 1, 4, "four")], top=4).html()
    drawn = [rect for rect in found(html, "rect") if rect["class"] == "mark"]
    heights = [float(rect["height"]) for rect in drawn]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.1)
    assert float(drawn[0]["x"]) < float(drawn[1]["x"])
    hit = [rect for rect in found(html, "rect") if "data-tip" in rect]
    assert [rect["data-tip"] for rect in hit] == ["two", "four"]
    assert hit[0]["height"] == hit[1]["height"] == drawn[1]["height"]


@pytest.mark.parametrize("bars", [[], [Bar(0, 1, 0, "nothing")]])
def test_plots_of_nothing_are_legal(bars):
    html = BarPlot("IoU", bars, diagonal=True).html()
    assert "nan" not in html
    assert found(html, "svg")


def test_cells_are_deeper_the_greater_their_share_and_none_are_left_out():
    cells = [[Cell(1.0, "9", "a as a"), Cell(0.2, "1", "a as b", "other")], [Cell(0.0), Cell(0.5, "3", "b as b")]]
    html = CellGrid("Confusion", ["a", "b"], ["a", "b"], cells, "truth", "detected").html()
    marks = [rect for rect in found(html, "rect") if "data-tip" in rect]
    assert [rect["data-tip"] for rect in marks] == ["a as a", "a as b", "", "b as b"]
    depth = [float(rect["fill-opacity"]) for rect in marks]
    assert depth[2] == 0 < depth[1] < depth[3] < depth[0]
    assert ["other" in rect["class"] for rect in marks] == [False, True, False, False]
    assert found(html, "svg")[0]["data-columns"] == "2"
    assert "Rows: truth; columns: detected." in html


def test_figures_stand_in_the_cells_of_small_grids_only():
    def grid(count):
        cells = [[Cell(1, "77", "tip")] * count] * count
        return CellGrid("", ["n"] * count, ["n"] * count, cells).html()

    assert grid(3).count(">77<") == 9
    assert ">77<" not in grid(20)


def test_hostile_names_stay_text():
    def page(text):
        grid = CellGrid(text, [text], [text], [[Cell(1, text, text)]], text, text)
        return render_page("t", "s", [Section("s", [BarPlot(text, [Bar(0, 1, 1, text)], text, text), grid])])

    hostile, harmless = Elements(page(HOSTILE)), Elements(page("name"))
    assert [(tag, list(names)) for tag, names in hostile.found] == [
        (tag, list(names)) for tag, names in harmless.found
    ]
    assert not re.search(r"<script>(?!\n)", page(HOSTILE))
