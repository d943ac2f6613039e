"""Backbones: image in, one feature map out, with its padding mask."""

from __future__ import annotations

from detrkit.config import BackboneName, ModelConfig
from detrkit.nn.backbones.resnet import ResNetBackbone, build_resnet, build_tiny

SMALL_BACKBONES: dict[BackboneName, tuple[int, ...]] = {
    "tiny": (16, 32, 64, 128),
    "mini": (24, 48, 96, 192),
    "nano": (32, 64, 128, 256),
}
"""Channels of the stem and of each stage of backbones that are always trained whole; of stride 16."""


def build_backbone(config: ModelConfig) -> ResNetBackbone:
    """Build the backbone that a config names, with random weights.

    A norm or a number of frozen stages still at ``auto`` is read as the setting for pretrained weights; the
    small backbones have none and are always trained whole.
    """
    exact = config.padding == "exact"
    if config.backbone in SMALL_BACKBONES:
        norm = "group" if config.backbone_norm == "auto" else config.backbone_norm
        return build_tiny(SMALL_BACKBONES[config.backbone], norm=norm, exact_padding=exact)
    return build_resnet(
        config.backbone,
        norm="frozen" if config.backbone_norm == "auto" else config.backbone_norm,
        dilation=config.dilation,
        frozen_stages=2 if config.frozen_stages == "auto" else config.frozen_stages,
        exact_padding=exact,
    )
