"""Values of the steps since the last log line, and figures of the outputs: kept on the device until they are read.

A loss alone does not tell a network with one answer to everything from one that learns slowly; the figures of its
outputs do: how many objects, how different its boxes are.
Everything is added up on the device and read once per log line. How much boxes vary is seen without dropout, whose
noise alone moves the boxes of a DETR that has learnt nothing by a tenth of the image: every 50 steps a few images
pass through the network as in detection.

Shapes: B images of a micro-batch, Q queries, n images whose boxes are looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import msgspec
import torch
from torch import Tensor, nn

from detrkit.losses.criterion import LastLayer
from detrkit.training.forward_backward import Passes
from detrkit.types import Batch

MATCHES_TO_JUDGE = 50
"""Matches per query, on average, after which the use of the queries is judged."""

PROBE_EVERY = 50
"""Steps between looks at the boxes."""

_PROBED = 8
"""Images whose boxes are looked at."""

_NUM_SUMS = 6
"""Columns before those of the queries."""


@dataclasses.dataclass(frozen=True)
class QueryUse:
    """Use of the queries over the last many images.

    Args:
        dead: Queries that were never matched with an object.
        queries: All queries.
        images: Images looked at.
        matches: Objects in them that a query was matched with.
    """

    dead: int
    queries: int
    images: int
    matches: int

    @property
    def objects_per_image(self) -> float:
        """Matched objects per image."""
        return self.matches / max(self.images, 1)


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


class _SavedWindow(TypedDict):
    names: tuple[str, ...]
    rows: Tensor
    steps: list[int]
    image_ids: list[tuple[int, ...]]
    seconds: float
    wait_s: float
    images: int


class _SavedHealth(TypedDict):
    rows: Tensor | None
    use: Tensor | None
    last_use: QueryUse | None


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

    def means(self) -> tuple[dict[str, float], float, float]:
        """Return the mean of each value over the steps where it is finite (NaN if nowhere), and two rates.

        The rates are images a second, and the share of the time spent waiting for data, 0 to 1.
        """
        values: dict[str, float] = {}
        for name, column in zip(self.names, self.rows().double().unbind(1), strict=True):
            finite = column[column.isfinite()]
            values[name] = float(finite.mean()) if len(finite) else math.nan
        seconds = max(self.seconds, 1e-9)
        return values, self.images / seconds, min(self.wait_s / seconds, 1.0)

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

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            ValueError: It is something else.
        """
        saved, rows = msgspec.convert(state, _SavedWindow), state["rows"]
        if rows.shape != (len(saved["steps"]), len(saved["names"])) or len(rows) != len(saved["image_ids"]):
            raise ValueError(f"window has {len(saved['steps'])} steps, and values of {tuple(rows.shape)}")
        self.clear()
        self.names, self.steps, self.image_ids = saved["names"], saved["steps"], saved["image_ids"]
        self._rows.set(rows if len(rows) else None)
        self.seconds, self.wait_s, self.images = saved["seconds"], saved["wait_s"], saved["images"]


class Health:
    """Figures of the last decoder layer's outputs over the steps since the last log line.

    Args:
        reduce: Sums a tensor over the processes; the identity for one process.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor] = lambda rows: rows):
        self._step: list[Tensor] = []  # [6 + Q] of each micro-batch of the present step, on the device
        self._rows = DeviceRows(reduce)  # the same of each step
        self._use: Tensor | None = None  # images, then how often each query was matched, [1 + Q] on the host
        self.last_use: QueryUse | None = None

    @torch.no_grad()
    def observe(self, last: LastLayer, share: float = 1.0) -> None:
        """Add a micro-batch; asks the device for nothing.

        Outputs that are not finite count as no image at all: their step changes nothing.

        Args:
            last: The last layer's outputs, detached.
            share: 0 for a process that has no image and takes part with a blank one.
        """
        is_object, probability = last.scoring.finds_object(last.logits), last.scoring.object_scores(last.logits)
        row = torch.stack((is_object.float().mean(1).sum(), probability.mean(1).sum()))
        images, nothing = torch.full_like(row[:1], len(last.logits)), torch.zeros_like(row[:1])
        self._add(torch.cat((images, row, nothing, nothing, nothing, last.matched.sum(0).float())), share)

    @torch.no_grad()
    def observe_boxes(self, boxes_cxcywh: Tensor, share: float = 1.0) -> None:
        """Add boxes ``[n, Q, 4]`` of at least two images that the same weights gave without dropout."""
        boxes = boxes_cxcywh.float()
        spread = torch.stack((boxes.var(0, correction=1).mean(), boxes.var(1, correction=0).mean()))
        nothing = torch.zeros_like(spread[:1])
        row = torch.cat((nothing, nothing, nothing, spread, nothing + 1, nothing.expand(boxes.shape[1])))
        self._add(row, share)

    def _add(self, row: Tensor, share: float) -> None:
        self._step.append(torch.where(row.isfinite().all(), row * share, 0.0))

    def end_step(self) -> None:
        """Add up the micro-batches of a step, of which processes may have made different numbers."""
        if self._step:
            self._rows.add(torch.stack(self._step).sum(0))
            self._step = []

    def figures(self) -> dict[str, float]:
        """Return the window's figures; empty before the first image. All processes take part.

        - ``objects_share``: share of the queries whose best class is an object, 0 to 1.
        - ``object_probability``: mean probability of an object.
        - ``matched_share``: share of the queries that were matched with an object, thus what ``objects_share``
          should come to.
        - ``box_spread_images``: standard deviation of a query's box over images, all of cx, cy, w and h together,
          in shares of the image; where the window has a look at the boxes.
        - ``box_spread_queries``: the same over the queries of an image.
        - ``queries_used``: share of the queries matched at least once in the last many images, once known.
        """
        rows = self._read()
        if rows is None or not float(rows[:, 0].sum()):
            return {}
        sums = rows.double().sum(0).tolist()
        images, objects, probability, over_images, over_queries, looks, *matched = sums
        found = {
            "objects_share": objects / images,
            "object_probability": probability / images,
            "matched_share": sum(matched) / (images * len(matched)),
        }
        if looks:
            found["box_spread_images"] = math.sqrt(over_images / looks)
            found["box_spread_queries"] = math.sqrt(over_queries / looks)
        if self.last_use is not None:
            found["queries_used"] = 1 - self.last_use.dead / self.last_use.queries
        return found

    def clear(self) -> None:
        """Begin a new window; how often the queries were matched is counted on."""
        rows = self._read()
        self._rows.set(None)
        if rows is None:
            return
        sums = rows.double().sum(0)
        fresh = torch.cat((sums[:1], sums[_NUM_SUMS:]))
        self._use = fresh if self._use is None else self._use + fresh
        images, matched = self._use[0], self._use[1:]
        if matched.sum() >= MATCHES_TO_JUDGE * len(matched):
            dead = int((matched == 0).sum())
            self.last_use = QueryUse(dead, len(matched), int(images), int(matched.sum()))
            self._use = None

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives, the same on all processes, which all take part."""
        return {
            "rows": self._read(),
            "use": self._use,
            "last_use": dataclasses.asdict(self.last_use) if self.last_use is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        saved = msgspec.convert(state, _SavedHealth)
        self._rows.set(saved["rows"])
        self._step, self._use, self.last_use = [], saved["use"], saved["last_use"]

    def _read(self) -> Tensor | None:
        """Return the window's rows over all processes, on the host."""
        self.end_step()
        return self._rows.read()


@torch.no_grad()
def probe_boxes(
    passes: Passes, module: nn.Module, batches: Sequence[Batch], step: int, micro_batch: int
) -> Tensor:
    """Return boxes of a few images as in detection, without dropout, float32 ``[n, Q, 4]``, n at least two.

    Args:
        passes: Passes of the run.
        module: Detector itself, which no other process waits for.
        batches: Batches of the step, on the host.
        step: Number of the step, from 0.
        micro_batch: Images at once.
    """
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()
    found: list[Tensor] = []
    try:
        for part in passes.micro_batches(batches[:1], step, min(micro_batch, _PROBED)):
            images, padding_mask = passes.inputs(part)
            if len(images) == 1 and not found:  # a single image is compared with itself upside down
                images = torch.cat((images, images.flip(2)))
                padding_mask = None if padding_mask is None else torch.cat((padding_mask, padding_mask.flip(1)))
            with passes.fabric.autocast():
                found.append(module(images, padding_mask).boxes_cxcywh[-1].float())
            if sum(map(len, found)) >= _PROBED:
                break
    finally:
        for inner, mode in modes:
            inner.training = mode
    return torch.cat(found)
