"""Backbones: image in, one feature map out, with its padding mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor

from detrkit.config import BackboneName, ModelConfig
from detrkit.errors import WeightsError
from detrkit.nn.backbones.hgnet import HGNETS, HgNetBackbone
from detrkit.nn.backbones.resnet import ResNetBackbone, build_resnet, build_tiny

SMALL_BACKBONES: dict[BackboneName, tuple[int, ...]] = {
    "tiny": (16, 32, 64, 128),
    "mini": (24, 48, 96, 192),
    "nano": (32, 64, 128, 256),
}
"""Channels of the stem and of each stage of backbones that are always trained whole; of stride 16."""


_RESNETS: dict[tuple[int, bool], BackboneName] = {
    (2, False): "resnet18",
    (6, False): "resnet34",
    (6, True): "resnet50",
    (23, True): "resnet101",
}
"""ResNets by the blocks of their third stage, and whether these are bottlenecks."""


def infer_backbone(state: Mapping[str, Tensor], prefix: str) -> BackboneName:
    """Infer which backbone a state dict holds under a prefix.

    Raises:
        WeightsError: None that is known.
    """
    resnet_d = f"{prefix}conv1.0.weight" in state
    stem = state[f"{prefix}conv1.0.weight" if resnet_d else f"{prefix}conv1.weight"]
    if stem.shape[-1] == 3 and not resnet_d:
        names = {channels[0]: name for name, channels in SMALL_BACKBONES.items()}
        if stem.shape[0] not in names:
            known = ", ".join(f"{count} ({name})" for count, name in names.items())
            raise WeightsError(f"the backbone's stem has {stem.shape[0]} channels, expected one of {known}")
        return names[stem.shape[0]]
    stage = f"{prefix}layer3."
    blocks = {name.removeprefix(stage).partition(".")[0] for name in state if name.startswith(stage)}
    kind = (len(blocks), f"{stage}0.conv3.weight" in state)
    if kind not in _RESNETS:
        raise WeightsError(
            f"the backbone has {kind[0]} blocks in layer3, expected ResNet-18, -34, -50 or -101 "
            f"({', '.join(str(count) for count, _ in _RESNETS)})"
        )
    return cast("BackboneName", f"{_RESNETS[kind]}vd") if resnet_d else _RESNETS[kind]


def build_backbone(config: ModelConfig) -> ResNetBackbone | HgNetBackbone:
    """Build the backbone that a config names, with random weights.

    A norm or a number of frozen stages still at ``auto`` is read as the setting for pretrained weights; the
    small backbones have none and are always trained whole.
    """
    exact = config.padding == "exact"
    if config.backbone in SMALL_BACKBONES:
        norm = "group" if config.backbone_norm == "auto" else config.backbone_norm
        return build_tiny(SMALL_BACKBONES[config.backbone], norm=norm, exact_padding=exact)
    norm = "frozen" if config.backbone_norm == "auto" else config.backbone_norm
    frozen_stages = 2 if config.frozen_stages == "auto" else config.frozen_stages
    if config.backbone in HGNETS:
        return HgNetBackbone(config.backbone, norm=norm, frozen_stages=frozen_stages, exact_padding=exact)
    return build_resnet(
        config.backbone, norm=norm, dilation=config.dilation, frozen_stages=frozen_stages, exact_padding=exact
    )
