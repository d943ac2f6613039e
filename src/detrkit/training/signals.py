"""Ctrl-C and SIGTERM as a polite request: finish the step, save, stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """A catch of SIGINT and SIGTERM inside ``with``; a second signal aborts at once with KeyboardInterrupt.

    Its argument is the number of the first signal, by which a command finds its exit code.

    Outside the main thread Python cannot catch signals; nothing is requested there then.

    Args:
        doing: What is still done after the first signal, for people.

    Attributes:
        signal_number: The first signal that came, or None.
    """

    def __init__(self, doing: str = "finishing this step, then saving") -> None:
        self._doing = doing
        self.signal_number: int | None = None
        self._count = 0
        self._immediate = False
        self._owner = os.getpid()
        self._former: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal_number is not None

    @property
    def insisted(self) -> bool:
        """Whether more than one came."""
        return self._count > 1

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Let the first signal, too, raise KeyboardInterrupt inside: for long work that changes no state."""
        self._immediate = True
        try:
            yield
        finally:
            self._immediate = False

    def watch_no_workers(self) -> None:
        """Take away torch's SIGCHLD handler, which loaders with workers install; to be called after ``iter``.

        A terminal's Ctrl-C and a scheduler's SIGTERM reach the workers too, perhaps before this process, and
        torch would raise "worker is killed" in the middle of a step. Without it a dead worker is noticed
        where the next batch is fetched, within seconds.
        """
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            former = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._former.setdefault(signal.SIGCHLD, former)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            # None: it was not set from Python, and cannot be
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former.clear()
        if self.insisted and isinstance(error, Exception):
            # what C++ called when the signal came tells of an error of its own, and not of the interruption
            raise KeyboardInterrupt(self.signal_number) from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            self._handle_in_worker(number)
            return
        self._count += 1
        if self.signal_number is None:
            self.signal_number = number
            self.watch_no_workers()
        if self.insisted or self._immediate:
            raise KeyboardInterrupt(self.signal_number)
        name = signal.Signals(number).name
        if any(os.environ.get(rank, "0") != "0" for rank in ("RANK", "LOCAL_RANK", "NODE_RANK")):
            return  # torchrun has told all processes; the first talks
        # not print(): the signal may have come in the middle of one, and that is an error in Python
        os.write(2, f"\n{name}: {self._doing}; once more aborts at once\n".encode())

    def _handle_in_worker(self, number: int) -> None:
        """End a forked loader worker, which has inherited this handler, by SIGTERM; Ctrl-C is its parent's."""
        if number == signal.SIGTERM:
            os._exit(128 + number)
