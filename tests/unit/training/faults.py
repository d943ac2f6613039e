"""Ways for a step to go wrong at a chosen moment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.training.forward_backward import step_seed
from detrkit.types import Batch


class SpoilBatch:
    """A loader that does something to batch number ``at`` of all, from 1, or to all from there on."""

    def __init__(self, loader: Any, at: int, spoil: Callable[[Batch], Batch | None], *, onwards: bool = False):
        self.loader, self.at, self.spoil, self.onwards, self.count = loader, at, spoil, onwards, 0
        self.batch_sampler = loader.batch_sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch | None]:
        for batch in self.loader:
            self.count += 1
            if self.count == self.at or (self.onwards and self.count > self.at):
                batch = self.spoil(batch) or batch
            yield batch


def nan_pixels(batch: Batch) -> Batch:
    """The same images as float, the second with a NaN."""
    images = batch.images.float()
    images[1, 0, 3, 5] = math.nan
    return dataclasses.replace(batch, images=images)


def nan_box(batch: Batch) -> None:
    batch.truth.boxes_cxcywh[0, 0] = math.nan


def thin_box(batch: Batch) -> None:
    batch.truth.boxes_cxcywh[-1, 2] = 0.0


def nan_weight(model: nn.Module, name: str) -> Callable[[Batch], None]:
    """Plants a NaN in a weight."""

    def spoil(_batch: Batch) -> None:
        with torch.no_grad():
            weight = model.get_parameter(name)
            weight[(0,) * weight.ndim] = math.nan

    return spoil


class Faulty(nn.Module):
    """A layer with a fault in one step, whenever that is made: ``forward``, ``backward`` or ``overflow``.

    It knows the step by its seed, so that a replay meets the same fault.
    """

    def __init__(self, layer: nn.Module, fault: str, step: int, seed: int = 42):
        super().__init__()
        self.layer = layer
        self.fault = fault
        self.seed = step_seed(seed, step - 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        fault = self.fault if torch.initial_seed() == self.seed else ""
        if fault == "overflow":
            x = x * 1e4
        x = self.layer(x)
        if fault == "forward":
            x = x + (x - x) / (x - x)
        if fault == "backward":
            x = x + (x - x).sqrt()
        return x


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Bit-equal, tensors inside lists and dicts too."""
    assert type(one) is type(two), where
    if isinstance(one, Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for place, (left, right) in enumerate(zip(one, two, strict=True)):
            assert_same(left, right, f"{where}[{place}]")
    else:
        assert one == two, where
