"""Presets of D-FINE: plain functions returning configs. No torch in here."""

from __future__ import annotations

from functools import partial
from typing import Any

from detrkit.config import BackboneName, Config
from detrkit.families.dfine.config import DFineConfig
from detrkit.families.preset import Preset, PublishedWeights
from detrkit.families.rtdetr.presets import AIDS, FAST, LOSS, real_time_training, square

# Its finest map has a stride of 16: it learns slowly, and bears twice the rate of others. So long a training wants
# crops and mosaics, and matrices that learn in all directions at once (docs/descendants.md). Losses of edges
# outweigh that of classes, which alone tells queries of one object apart.
FAST_NANO = {
    **FAST,
    "transforms.recipe": "detr",
    "transforms.mosaic": 0.5,
    "transforms.close_after": 0.5,
    "loss.class_weight": 3.0,
    "train.lr": 2e-3,
    "train.backbone_lr": 2e-3,
    "train.muon": 0.6,
}


def _dfine(preset: str, backbone: BackboneName, lr: float, backbone_lr: float, **sizes: Any) -> Config:
    return Config(
        model=DFineConfig(preset=preset, backbone=backbone, **{"points": (3, 6, 3), **sizes}),
        transforms=square(),
        loss=LOSS,
        aids=AIDS,
        train=real_time_training(lr=lr, backbone_lr=backbone_lr, warmup_steps=500, weight_decay=1.25e-4),
    )


def _preset(
    size: str, hub: str, backbone: BackboneName, params_m: float, ap: float, lr: tuple[float, float], **sizes: Any
) -> Preset:
    name = f"dfine-{size}"
    published = PublishedWeights("", "", f"ustc-community/dfine-{hub}-coco", ap, "Apache-2.0")
    make = partial(_dfine, name, backbone, *lr, **sizes)
    summary = f"real-time, boxes as distributions, {backbone} backbone"
    fast = FAST_NANO if size == "n" else FAST
    return Preset(make, summary, params_m, published=published, fast=fast)


_NANO = {"hidden_dim": 128, "encoder_dim": 128, "ffn_dim": 512, "encoder_ffn_dim": 512, "feature_levels": 2}
_FROZEN = {"backbone_norm": "frozen", "frozen_stages": 1, "decoder_layers": 6}
PRESETS: dict[str, Preset] = {
    "dfine-n": _preset(
        "n",
        "nano",
        "hgnetv2-b0",
        3.8,
        42.8,
        (8e-4, 4e-4),
        decoder_layers=3,
        points=(6, 6),
        expansion=0.34,
        fusion_blocks=2,
        **_NANO,
    ),
    "dfine-s": _preset(
        "s", "small", "hgnetv2-b0", 10.3, 48.5, (2e-4, 1e-4), decoder_layers=3, expansion=0.5, fusion_blocks=1
    ),
    "dfine-m": _preset("m", "medium", "hgnetv2-b2", 19.6, 52.3, (2e-4, 2e-5), decoder_layers=4, fusion_blocks=2),
    "dfine-l": _preset("l", "large", "hgnetv2-b4", 31.2, 54.0, (2.5e-4, 1.25e-5), **_FROZEN),
    "dfine-x": _preset(
        "x",
        "xlarge",
        "hgnetv2-b5",
        62.6,
        55.8,
        (2.5e-4, 2.5e-6),
        encoder_dim=384,
        encoder_ffn_dim=2048,
        edge_scale=8.0,
        **_FROZEN,
    ),
}
