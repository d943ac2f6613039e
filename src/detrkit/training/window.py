"""Values of the steps since the last log line, kept on the device until somebody reads them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class WindowMeans:
    """Means over a window: values by name, images a second, share of time spent waiting for data (0 to 1)."""

    values: dict[str, float]
    images_per_s: float
    data_wait: float


class DeviceRows:
    """Rows of numbers, one a step, that stay on the device until somebody reads them.

    Args:
        reduce: Combines ``[k, n]`` rows over the processes; the identity for one process.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor]):
        self._reduce = reduce
        self._pending: list[Tensor] = []
        self._known: Tensor | None = None

    def add(self, row: Tensor) -> None:
        """Add a row ``[n]`` of this process."""
        self._pending.append(row)

    def read(self) -> Tensor | None:
        """Return all rows ``[k, n]`` over the processes, on the host; the one place that waits for the device."""
        if self._pending:
            fresh = self._reduce(torch.stack(self._pending)).cpu()
            self._known = fresh if self._known is None else torch.cat((self._known, fresh))
            self._pending = []
        return self._known

    def set(self, rows: Tensor | None) -> None:
        """Begin anew with rows that are on the host."""
        self._pending, self._known = [], rows


class StepWindow:
    """A collection of what every step computed, not read, so that a step waits for nothing.

    Shapes: k steps in the window, n named values.

    Args:
        reduce: Averages a ``[k, n]`` tensor over the processes; the identity for one process.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor] = lambda rows: rows):
        self._rows = DeviceRows(reduce)
        self.names: tuple[str, ...] = ()
        self.steps: list[int] = []
        self.image_ids: list[tuple[int, ...]] = []
        self.seconds = 0.0
        self.wait_s = 0.0
        self.images = 0

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: int, values: dict[str, Tensor], image_ids: tuple[int, ...], images: int) -> Tensor:
        """Note a step; returns its values as one tensor, float32 ``[n]`` on the device.

        Args:
            step: Number of the step.
            values: Scalars on the device; the same names at every step.
            image_ids: The step's images on this process.
            images: Number of the step's images on all processes.
        """
        self.names = tuple(values)
        self.steps.append(step)
        row = torch.stack([value.float() for value in values.values()])
        self._rows.add(row)
        self.image_ids.append(image_ids)
        self.images += images
        return row

    def add_time(self, seconds: float, wait_s: float) -> None:
        """Note how long a step took in all, and how much of that it waited for data."""
        self.seconds += seconds
        self.wait_s += wait_s

    def rows(self) -> Tensor:
        """Return all values ``[k, n]`` float32 on the host; the one place that waits for the device."""
        rows = self._rows.read()
        return torch.zeros(0, len(self.names)) if rows is None else rows

    def means(self) -> WindowMeans:
        """Return the mean of each value over the steps where it is finite (NaN if nowhere), and both rates."""
        values: dict[str, float] = {}
        for name, column in zip(self.names, self.rows().double().unbind(1), strict=True):
            finite = column[column.isfinite()]
            values[name] = float(finite.mean()) if len(finite) else math.nan
        seconds = max(self.seconds, 1e-9)
        return WindowMeans(values, self.images / seconds, min(self.wait_s / seconds, 1.0))

    def clear(self) -> None:
        """Begin a new window."""
        self.steps, self.image_ids = [], []
        self._rows.set(None)
        self.seconds = self.wait_s = 0.0
        self.images = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs for its first log line to be that of the uninterrupted run."""
        return {
            "names": list(self.names),
            "rows": self.rows(),
            "steps": list(self.steps),
            "image_ids": [list(ids) for ids in self.image_ids],
            "seconds": self.seconds,
            "wait_s": self.wait_s,
            "images": self.images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.clear()
        self.names = tuple(state["names"])
        self.steps = list(state["steps"])
        self.image_ids = [tuple(ids) for ids in state["image_ids"]]
        self._rows.set(state["rows"] if len(state["rows"]) else None)
        self.seconds, self.wait_s, self.images = state["seconds"], state["wait_s"], state["images"]
