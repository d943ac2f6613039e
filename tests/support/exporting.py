"""Models that are small enough to be exported in tests, and sure enough of what they see to be compared."""

from __future__ import annotations

import torch
from torch import nn

from detrkit.classes import ClassMap
from detrkit.config import update_config
from detrkit.detectors.detector import Detector
from detrkit.detectors.load import make_detector
from detrkit.families.build import build_model
from detrkit.families.recipes import preset_config

CLASSES = ClassMap(("cat", "dog", "gnu"), (17, 18, 44), logit_index=(2, 0, 3), num_labels=5)
PRESETS = ("detr-tiny", "detr-tiny-two-stage")
_SIZES = {
    "model.hidden_dim": 32,
    "model.num_heads": 2,
    "model.ffn_dim": 32,
    "model.num_queries": 12,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.backbone": "tiny",
    "model.backbone_norm": "batch",
}


def small_detector(preset: str, **changes: object) -> Detector:
    """A model of a preset's family with random weights, of few features and layers."""
    config = update_config(preset_config(preset), {**_SIZES, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = build_model(config, CLASSES)
        for name, parameter in built.model.named_parameters():
            if "class_embed" in name and parameter.ndim == 2:
                nn.init.normal_(parameter, std=1.0)
            if "bbox_embed" in name and parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.3)
            if "query_embed" in name:
                nn.init.normal_(parameter, std=2.0)
        for module in built.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return make_detector(built, device="cpu")
