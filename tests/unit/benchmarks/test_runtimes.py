"""The tables of the runtimes' benchmark, and that its competitors can be made."""

import pytest

from benchmarks.detr_speed import make_pair
from benchmarks.runtimes import main_table
from benchmarks.timing import Row, time_in_turn


def test_shares_of_the_peaks_and_the_bound_are_told():
    rows = [Row("theirs", 2.0, 1.9, 2.5, 1.0), Row("OpenVINO bf16", 0.5, 0.4, 0.6, 4.0)]
    table = main_table(rows, 100_000_000_000, {"float32": 200e9, "bf16": 400e9})
    assert "| OpenVINO bf16 | 500 ms | 400 to 600 ms | 4.00 | 6.0 | 200 | 100 % | 50 % |" in table
    assert "8.0 times as fast" in table  # 100 GFLOP at 400 GFLOP/s take 0.25 s


def test_any_clock_is_read_around_each_run():
    moments = iter([0.0, 1.0, 10.0, 12.0, 20.0, 21.0, 30.0, 36.0])
    rows = time_in_turn({"a": list, "b": list}, 2, clock=lambda: next(moments))
    assert [(row.least_s, row.greatest_s, row.ratio) for row in rows] == [(1.0, 1.0, 1.0), (2.0, 6.0, 0.25)]


@pytest.mark.slow
def test_both_models_have_the_same_weights():
    pytest.importorskip("transformers")
    ours, theirs = make_pair()
    assert sum(one.numel() for one in ours.parameters()) == sum(one.numel() for one in theirs.parameters())
