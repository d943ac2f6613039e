"""The clock, the hooks and the counters that watch a training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detrkit.detectors.cost import count_kept
from detrkit.profiling.measure import FORWARD, REST, PhaseClock, watch_parts


class Hands:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.time = 100.0
        self.waited = 0

    def now(self) -> float:
        return self.time

    def wait(self) -> None:
        self.waited += 1


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def clock(hands: Hands) -> PhaseClock:
    return PhaseClock(hands.wait, hands.now)


def test_a_phase_inside_another_takes_its_time_from_it(hands: Hands, clock: PhaseClock):
    hands.time += 1
    with clock("loss"):
        hands.time += 2
        with clock("matching"):
            hands.time += 4
            assert clock.phase == "matching"
        hands.time += 8
    hands.time += 16
    assert clock.end_step() == {REST: 17.0, "loss": 10.0, "matching": 4.0}
    hands.time += 3
    assert clock.end_step() == {REST: 3.0}


def test_kept_bytes_are_counted_once_and_without_parameters():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.randn(8, 16)
    found: dict[str, int] = {}
    with count_kept(model, found, lambda: "here"):
        model(x).sum()
    # the input, and what comes out of the relu, which both the relu and the last layer want
    assert found == {"here": x.nbytes + 8 * 32 * 4}


def test_parts_are_timed_by_the_outermost_that_runs():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.Sequential(inner, nn.Linear(2, 2))
    clock = PhaseClock(lambda: None)
    with watch_parts(model, clock):
        with clock(FORWARD):
            model(torch.zeros(1, 2))
        inner(torch.zeros(1, 2))  # by itself it is no part of a forward
    assert set(clock.end_step()) == {REST, FORWARD, "forward: 0 (Sequential)", "forward: 1 (Linear)"}
    with clock(FORWARD):
        model(torch.zeros(1, 2))
    assert set(clock.end_step()) == {REST, FORWARD}
