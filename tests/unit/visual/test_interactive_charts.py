"""Charts of a page that answer to the pointer."""

from __future__ import annotations

import io
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from detrkit.visual.chart import Bar, Chart, Line, Series, histogram, scatter
from detrkit.visual.interactive_charts import MOST_BARS, BarChart, Cell, CellGrid, Charts, HeatMap, thinned
from tests.unit.visual.elements import Elements


def found(html, name):
    return [attributes for tag, attributes in Elements(html).found if tag == name]


def tips(html):
    return Elements(html).every("data-tip", "rect")


def lines_of(values, **options):
    x = np.arange(float(len(next(iter(values.values())))))
    lines = [Line(name, number, Series(x, np.array(y))) for number, (name, y) in enumerate(values.items())]
    return Chart("t", "step", lines=lines, **options)


def test_lines_tell_the_values_of_all_near_the_pointer():
    html = Charts([lines_of({"a": [1.0, 2, 4], "b": [3.0, 3, 3]}, legend=True)]).html()
    assert tips(html) == ["step 0\na: 1\nb: 3", "step 1\na: 2\nb: 3", "step 2\na: 4\nb: 3"]
    assert Elements(html).every("data-name", "path") == ["a", "b"]
    assert Elements(html).every("data-name", "button") == ["a", "b"]
    edges = [(float(rect["x"]), float(rect["x"]) + float(rect["width"])) for rect in found(html, "rect")]
    assert [right for _, right in edges[:-1]] == pytest.approx([left for left, _ in edges[1:]], abs=0.2)


def test_long_lines_have_few_columns_that_answer_and_keep_their_spikes():
    y = np.zeros(100_000)
    y[[77, 50_123]] = 9, -9
    assert len(tips(Charts([lines_of({"a": y})]).html())) == 80
    thin = thinned(Series(np.arange(100_000.0), y))
    assert len(thin) <= 600
    assert (thin.y.max(), thin.y.min()) == (9, -9)
    assert np.all(np.diff(thin.x) > 0)


def test_a_bar_is_as_high_as_its_value_and_its_whole_column_answers():
    html = Charts([Chart("IoU", bars=[Bar(0, 0.5, 2, "two"), Bar(0.5, 1, 4, "four")], y_range=(0, 4))]).html()
    drawn = [rect for rect in found(html, "rect") if rect["class"] == "mark"]
    heights = [float(rect["height"]) for rect in drawn]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.1)
    assert float(drawn[0]["x"]) < float(drawn[1]["x"])
    assert tips(html) == ["two", "four"]
    hit = [rect for rect in found(html, "rect") if "data-tip" in rect]
    assert float(hit[0]["height"]) == float(hit[1]["height"]) == pytest.approx(heights[1], abs=0.1)


def test_named_points_are_told_and_thousands_of_others_stay_small():
    named = Chart("t", "ms", "AP", points=Series(np.array([1.0, 9]), np.array([40.0, 50])), point_names=["A", "B"])
    assert Elements(Charts([named]).html()).every("data-tip", "circle") == [
        "A\nms 1\nAP 40",
        "B\nms 9\nAP 50",
    ]
    many = np.random.default_rng(0).random(100_000)
    assert len(Charts([scatter("t", many, many, "x", "y")]).html()) < 100_000


def test_horizontal_bars_are_cut_and_counted():
    html = BarChart("t", {f"class {number}": number for number in range(MOST_BARS + 7)}, "objects").html()
    assert "7 more not shown" in html
    assert f"class {MOST_BARS - 1}<" in html
    assert f"class {MOST_BARS}<" not in html
    assert "--share:100.0%" in html


def test_a_heat_map_is_a_picture_with_nothing_where_there_is_nothing():
    html = HeatMap("t", np.array([[0, 2], [1, 4]]), 2.0).html()
    (image,) = found(html, "img")
    pixels = np.asarray(Image.open(io.BytesIO(b64decode(image["src"].partition(",")[2]))))
    assert pixels[..., 3].tolist() == [[0, 128], [64, 255]]
    assert HeatMap("t", np.zeros((2, 2))).html()


EMPTY = {
    "lines": Chart("t", lines=[Line("a", 0, Series(np.zeros(0), np.zeros(0)))]),
    "histograms": histogram("t", {"a": np.zeros(0), "b": np.zeros(0)}, np.arange(3.0)),
    "points": scatter("t", np.zeros(0), np.zeros(0), "x", "y", log=True),
}


@pytest.mark.parametrize("chart", EMPTY.values(), ids=EMPTY)
def test_charts_of_nothing_are_left_out(chart):
    assert Charts([chart]).html() == '<div class="plots"></div>'


def test_cells_are_deeper_the_greater_their_share_and_none_are_left_out():
    cells = [[Cell(1.0, "9", "a as a"), Cell(0.2, "1", "a as b", "other")], [Cell(0.0), Cell(0.5, "3", "b as b")]]
    html = CellGrid("Confusion", ["a", "b"], ["a", "b"], cells, "truth", "detected").html()
    marks = [rect for rect in found(html, "rect") if "data-tip" in rect]
    assert tips(html) == ["a as a", "a as b", "", "b as b"]
    depth = [float(rect["fill-opacity"]) for rect in marks]
    assert depth[2] == 0 < depth[1] < depth[3] < depth[0]
    assert ["other" in rect["class"] for rect in marks] == [False, True, False, False]
    assert found(html, "svg")[0]["data-columns"] == "2"
    assert "Rows: truth; columns: detected." in html
