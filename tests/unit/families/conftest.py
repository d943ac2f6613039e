"""Checkpoints with the published names and shapes, from random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detrkit.families.detr.config import DetrConfig
from detrkit.families.detr.model import Detr, build_detr
from detrkit.families.recipes import preset_config
from detrkit.types import GroundTruth
from tests.parity.conftest import randomize


class CheapDraws(TorchFunctionMode):
    """Draws 4093 numbers of a tensor, a prime so that no two rows are the same, and repeats them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (Tensor.uniform_, Tensor.normal_) or args[0].numel() <= 4093:
            return func(*args, **(kwargs or {}))
        drawn = func(args[0].new_empty(4093), *args[1:], **(kwargs or {})).repeat(args[0].numel() // 4093 + 1)
        return args[0].copy_(drawn[: args[0].numel()].view_as(args[0]))


def small_config(**changes: object) -> DetrConfig:
    """A DETR with a real ResNet but a small transformer, quick to build and save."""
    base = {
        "preset": "detr-r18",
        "backbone": "resnet18",
        "hidden_dim": 32,
        "num_heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "ffn_dim": 64,
        "num_queries": 10,
        "backbone_norm": "frozen",
        "frozen_stages": 2,
    }
    return DetrConfig.model_validate({**base, **changes})


def build(config: DetrConfig, num_labels: int = 91, seed: int = 0) -> Detr:
    torch.manual_seed(seed)
    with CheapDraws():
        model = build_detr(config, num_labels).eval()
    if config.backbone_norm == "frozen":
        randomize(model, seed)
    return model


def make_truth(counts: tuple[int, ...]) -> GroundTruth:
    generator = torch.Generator().manual_seed(1)
    total = sum(counts)
    boxes = torch.cat((torch.rand(total, 2, generator=generator) * 0.6 + 0.2, torch.full((total, 2), 0.3)), dim=1)
    return GroundTruth(torch.randint(0, 3, (total,), generator=generator), boxes, counts)


@pytest.fixture(scope="session")
def detr_r50() -> Detr:
    config = preset_config("detr-r50").model.model_copy(update={"backbone_norm": "frozen", "frozen_stages": 2})
    return build(config)
