"""Charts as they are described: ranges, ticks, histograms, points."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.visual.chart import MOST_POINTS, Chart, Line, Series, histogram, scatter, ticks


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (3, 17, False, [5, 7.5, 10, 12.5, 15]),
        (-0.3, 0.31, False, [-0.2, 0, 0.2]),
        (0, 2.1e-5, False, [0, 5e-6, 1e-5, 1.5e-5, 2e-5]),
        (3, 220, True, [5, 10, 20, 50, 100, 200]),
        (1e-8, 1e4, True, [1e-8, 1e-5, 1e-2, 10, 1e4]),
        (8e-8, 1.3e-6, True, [1e-7, 2e-7, 5e-7, 1e-6]),
    ],
)
def test_ticks_are_round_numbers_of_the_range(low, high, log, expected):
    assert ticks(low, high, log=log) == pytest.approx(expected)


def test_one_histogram_counts_and_what_lies_beyond_the_edges_is_in_the_last_bin():
    chart = histogram("t", {"a": np.array([2.0, 500, 500, 500])}, np.array([0.0, 5, 10]))
    assert [(bar.start, bar.end, bar.value) for bar in chart.bars] == [(0, 5, 1), (5, 10, 3)]
    assert chart.limits()[1][1] > 3


def test_several_histograms_are_lines_in_percent_of_each():
    values = {"a": np.array([1.0, 1, 1, 9]), "b": np.array([9.0]), "none": np.zeros(0)}
    chart = histogram("t", values, np.array([0.0, 5, 10]))
    assert {line.name: line.series.y.tolist() for line in chart.lines} == {"a": [75, 25], "b": [0, 100]}
    assert not chart.bars
    assert "%" in chart.title


def test_of_many_points_a_part_is_drawn_and_always_the_same():
    many = np.random.default_rng(0).random(4 * MOST_POINTS)
    first, again = scatter("t", many, many, "x", "y"), scatter("t", many, many, "x", "y")
    assert len(first.points) == MOST_POINTS
    assert np.array_equal(first.points.x, again.points.x)
    assert len(scatter("t", np.arange(3.0), np.arange(3.0)[::-1], "x", "y", log=True).points) == 1


@pytest.mark.parametrize("value", [0.0, -2.0, 3.0, 1e-12])
def test_limits_of_a_constant_have_a_width(value):
    (x0, x1), (y0, y1) = Chart("t", lines=[Line("a", 0, Series(np.array([5.0]), np.array([value])))]).limits()
    assert x0 < 5 < x1
    assert y0 <= value <= y1
    assert y0 < y1


def test_a_chart_of_nothing_is_empty():
    assert histogram("t", {"a": np.zeros(0)}, np.arange(3.0)).is_empty
    assert scatter("t", np.zeros(0), np.zeros(0), "x", "y", log=True).is_empty
    assert Chart("t").limits() == ((0, 1), (0, 1))
