"""A clock that divides a step's time among named phases; a phase inside another takes its time from it."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

REST = "rest"
"""What no phase claims."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class PhaseClock:
    """Every moment of a step belongs to exactly one phase: the innermost that is open, or :data:`REST`.

    Args:
        now: Seconds since some moment.
        synchronise: Waits for the device, so that work is counted where it was asked for.
    """

    def __init__(self, synchronise: Callable[[], None], now: Callable[[], float] = time.perf_counter):
        self.synchronise = synchronise
        self.waits = True
        self._now = now
        self._open: list[str] = []
        self._spent: dict[str, float] = {}
        self._mark = now()

    @property
    def phase(self) -> str:
        """The phase that the present moment belongs to."""
        return self._open[-1] if self._open else REST

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Time inside belongs to ``phase``, but for that of phases inside it."""
        self.enter(phase)
        try:
            yield
        finally:
            self.leave(phase)

    def enter(self, phase: str) -> None:
        """Begin a phase, which :meth:`leave` ends."""
        self._settle()
        self._open.append(phase)

    def leave(self, phase: str) -> None:
        """End a phase, and what an error left open inside it."""
        self._settle()
        if phase in self._open:
            last = len(self._open) - 1 - self._open[::-1].index(phase)
            del self._open[last:]

    def timed(self, phase: str, work: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        """The same function, its time counted as ``phase``, and named so in a trace."""

        @functools.wraps(work)
        def counted(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            with self.measure(phase), torch.profiler.record_function(phase):
                return work(*args, **kwargs)

        return counted

    def end_step(self) -> dict[str, float]:
        """Seconds by phase since the last call; their sum is the time since then."""
        self._settle()
        spent, self._spent = self._spent, {}
        return spent

    def _settle(self) -> None:
        if self.waits:
            self.synchronise()
        now = self._now()
        self._spent[self.phase] = self._spent.get(self.phase, 0.0) + now - self._mark
        self._mark = now
