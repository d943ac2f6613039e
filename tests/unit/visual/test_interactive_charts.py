"""Charts of a page that answer to the pointer."""

from __future__ import annotations

import io
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from detrkit.visual.chart import Chart, Line, Series, histogram, scatter
from detrkit.visual.interactive_charts import Charts, HeatMap, thinned
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
