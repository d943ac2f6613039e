"""Checkpoints with the published names and shapes, from random numbers."""

from __future__ import annotations

import pytest
import torch

from detrkit.families.detr.config import DetrConfig
from detrkit.families.detr.model import Detr, build_detr
from detrkit.families.recipes import preset_config
from detrkit.types import GroundTruth
from tests.parity.conftest import randomize


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
