"""Charts as they are described: ranges, ticks, histograms, points."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.visual.chart import histogram, ticks


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


def test_shares_of_several_series_begin_at_zero_although_they_are_alike():
    series = {"a": np.repeat([1.0, 6], [9, 11]), "b": np.repeat([1.0, 6], [10, 10])}
    chart = histogram("t", series, np.array([0.0, 5, 10]))
    assert chart.limits()[1] == (0, pytest.approx(1.05 * 55))
