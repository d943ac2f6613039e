"""Ways for a step to go wrong at a chosen moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

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
    return Batch(images, batch.padding_mask, batch.truth, batch.targets, batch.sizes_hw)


def nan_box(batch: Batch) -> None:
    batch.truth.boxes_cxcywh[0, 0] = math.nan


def thin_box(batch: Batch) -> None:
    batch.truth.boxes_cxcywh[-1, 2] = 0.0


def nan_weight(model: nn.Module, name: str) -> Callable[[Batch], None]:
    """Plants a NaN in a weight."""

    def spoil(_batch: Batch) -> None:
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] = math.nan

    return spoil


class Faulty(nn.Module):
    """A layer with a fault that can be switched on: ``forward``, ``backward`` or ``overflow``."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.fault = ""

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "overflow":
            x = x * 1e4
        x = self.layer(x)
        if self.fault == "forward":
            x = x + (x - x) / (x - x)
        if self.fault == "backward":
            x = x + (x - x).sqrt()
        return x


class FaultAt(SpoilBatch):
    """A loader during one batch of which a layer has a fault."""

    def __init__(self, loader: Any, at: int, layer: Faulty, fault: str):
        super().__init__(loader, at, lambda _batch: setattr(layer, "fault", fault))
        self.layer = layer

    def __iter__(self) -> Iterator[Batch | None]:
        for batch in super().__iter__():
            yield batch
            self.layer.fault = ""
