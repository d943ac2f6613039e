from __future__ import annotations

import pytest

from detrkit.profiling.clock import REST, PhaseClock


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
    with clock.measure("loss"):
        hands.time += 2
        with clock.measure("matching"):
            hands.time += 4
            assert clock.phase == "matching"
        hands.time += 8
    hands.time += 16
    assert clock.end_step() == {REST: 17.0, "loss": 10.0, "matching": 4.0}
    hands.time += 3
    assert clock.end_step() == {REST: 3.0}


def test_what_an_error_left_open_ends_with_the_phase_around_it(hands: Hands, clock: PhaseClock):
    clock.enter("forward")
    clock.enter("part")
    hands.time += 1
    clock.leave("forward")
    assert clock.phase == REST
    clock.leave("never begun")
    hands.time += 5
    assert clock.end_step() == {"forward": 0.0, "part": 1.0, REST: 5.0}


def test_a_timed_function_is_the_same_function(hands: Hands, clock: PhaseClock):
    def double(x: int, *, plus: int = 0) -> int:
        """Twice."""
        hands.time += 1
        return 2 * x + plus

    timed = clock.timed("doubling", double)
    assert timed(3, plus=1) == 7
    assert timed.__doc__ == "Twice."
    assert clock.end_step()["doubling"] == 1.0


def test_the_device_is_waited_for_at_borders_unless_told_otherwise(hands: Hands, clock: PhaseClock):
    with clock.measure("a"):
        pass
    assert hands.waited == 2
    clock.waits = False
    with clock.measure("a"):
        pass
    assert hands.waited == 2
