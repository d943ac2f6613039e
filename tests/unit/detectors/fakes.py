"""Detectors without weights, for tests of what is measured around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from detrkit.classes import SizeHW
from detrkit.types import ImageDetections


class FakeStages:
    """A convolution and a matrix product, that note what they are given."""

    pads = False

    def __init__(self, on_stage: Callable[[str], None] = lambda _stage: None):
        self.network: nn.Module = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        ).eval()
        self.device = torch.device("cpu")
        self.seen: list[tuple[int, ...]] = []
        self.on_stage = on_stage

    def resize(self, image: Tensor) -> Tensor:
        return image

    def preprocess(self, images: Sequence[Tensor]) -> Tensor:
        self.on_stage("preprocess")
        return torch.stack(list(images)).float()

    def forward(self, inputs: Tensor) -> Tensor:
        self.on_stage("model")
        self.seen.append(tuple(inputs.shape))
        with torch.inference_mode():
            return self.network(inputs)

    def postprocess(self, outputs: Tensor, orig_sizes_hw: Sequence[SizeHW]) -> list[ImageDetections]:
        self.on_stage("postprocess")
        assert len(outputs) == len(orig_sizes_hw)
        empty = ImageDetections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
        return [empty for _ in orig_sizes_hw]
