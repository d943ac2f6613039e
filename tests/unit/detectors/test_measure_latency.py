from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.detectors.measure_latency import Stopwatch, measure_decode, measure_latency, with_decode
from detrkit.errors import DataError, UsageError
from detrkit.latency import Latency, Percentiles
from tests.unit.detectors.fakes import FakeStages

COST_NS = {"preprocess": 2_000_000, "model": 30_000_000, "postprocess": 1_000_000}


class FakeClock:
    """Time passes only where a stage works; the model takes ``extra`` nanoseconds longer in each later run."""

    def __init__(self, extra: int = 0, first: int = 0):
        self.time, self.runs = 0, 0
        self.extra, self.first = extra, first

    def on_stage(self, stage: str) -> None:
        self.time += COST_NS[stage]
        if stage == "model":
            self.time += self.extra * self.runs + max(self.first - self.runs, 0) * 100_000_000
            self.runs += 1

    def now(self) -> int:
        return self.time


def pictures(*sizes_hw: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.zeros((3, *size), dtype=torch.uint8) for size in sizes_hw]


def test_each_stage_gets_its_own_time_in_milliseconds():
    clock = FakeClock()
    stages = FakeStages(clock.on_stage)
    latency = measure_latency(stages, pictures((8, 8), (8, 8)), repeats=2, now=clock.now)
    assert latency.preprocess == Percentiles(2, 2, 2, 2, 2, 2)
    assert latency.model == Percentiles(30, 30, 30, 30, 30, 30)
    assert latency.postprocess == Percentiles(1, 1, 1, 1, 1, 1)
    assert latency.total == Percentiles(33, 33, 33, 33, 33, 33)
    assert (latency.runs, latency.images, latency.batch_size) == (4, 2, 1)
    assert latency.images_per_s == pytest.approx(1000 / 33)
    assert latency.device == "cpu"


def test_percentiles_of_growing_times():
    clock = FakeClock(extra=1_000_000)
    latency = measure_latency(FakeStages(clock.on_stage), pictures((8, 8)), warm_up=0, repeats=101, now=clock.now)
    model = latency.model
    assert (model.min, model.p50, model.p90, model.p95, model.p99) == (30, 80, 120, 125, 129)
    assert model.mean == 80
    assert latency.warm_up == 0


def test_the_warm_up_goes_on_until_times_stop_falling():
    short, long = FakeClock(), FakeClock(first=9)
    assert Stopwatch(FakeStages(short.on_stage), pictures((8, 8)), now=short.now).warm_up(4) == 1 + 4
    runs = Stopwatch(FakeStages(long.on_stage), pictures((8, 8)), now=long.now).warm_up(4)
    assert 1 + 9 < runs <= 1 + 5 * 4
    endless = FakeClock(first=16)
    assert Stopwatch(FakeStages(endless.on_stage), pictures((8, 8)), now=endless.now).warm_up(3) == 1 + 15


def test_batches_are_whole_and_their_time_is_not_divided():
    clock = FakeClock()
    stages = FakeStages(clock.on_stage)
    told = []
    latency = measure_latency(
        stages,
        pictures(*[(8, 8)] * 5),
        batch_size=2,
        repeats=3,
        now=clock.now,
        progress=lambda done, of: told.append((done, of)),
    )
    assert set(stages.seen) == {(2, 3, 8, 8)}
    assert (latency.images, latency.runs, latency.total.p50) == (4, 6, 33)
    assert latency.images_per_s == pytest.approx(2000 / 33)
    assert told == [(done, 6) for done in range(1, 7)]


def test_wrong_numbers_are_refused():
    for options, message in (
        ({"batch_size": 2}, "1 images make no batch of 2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"warm_up": -1}, "warm_up is -1"),
    ):
        with pytest.raises(UsageError, match=message):
            measure_latency(FakeStages(), pictures((8, 8)), **options)


def test_json_there_and_back(tmp_path: Path):
    file = tmp_path / "a.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file)
    plain = measure_latency(FakeStages(), pictures((8, 8)), repeats=3)
    assert plain.decode is None
    latency = with_decode(plain, [file, file])
    assert latency.decode is not None
    for one in (plain, latency):
        assert msgspec.convert(json.loads(json.dumps(one.to_dict())), Latency) == one
    with pytest.raises(DataError, match="no times"):
        measure_decode([])
