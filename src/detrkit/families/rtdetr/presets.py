"""Presets of RT-DETRv2: plain functions returning configs. No torch in here."""

from __future__ import annotations

from functools import partial
from typing import Any

from detrkit.config import AidsConfig, BackboneName, Config, LossConfig, RecipeName, TrainConfig, TransformConfig
from detrkit.families.preset import Preset, PublishedWeights
from detrkit.families.rtdetr.config import RTDetrConfig

LOSS = LossConfig(class_cost=2.0, class_targets="iou")
WARMUP_SHARE = 0.05
"""Of steps: the authors' warm-up is counted for COCO, and would be most of a training on little data."""
FAST: dict[str, Any] = {"aids.dense": "none", "transforms.recipe": "resize", "train.batch_size": 8}
"""For little data: noised objects teach more than tokens do, and strong augmentation wants long trainings."""
FAST_NANO: dict[str, Any] = {**FAST, "train.lr": 1e-3, "train.backbone_lr": 1e-3, "train.muon": 0.6}
AIDS = AidsConfig(denoising=100, label_noise=0.25, box_noise=1.0)
real_time_training = partial(
    TrainConfig, epochs=72, ema_decay=0.9999, warmup_share=WARMUP_SHARE, schedule="constant"
)
"""What trainings of all presets with published weights share, as published; D-FINE's too."""


def square(size: int = 640, recipe: RecipeName = "strong") -> TransformConfig:
    """Return the preprocessing of real-time DETRs: squares of pixels of 0 to 1."""
    return TransformConfig(
        recipe=recipe,
        scales=tuple(range(size * 3 // 4, size * 5 // 4 + 1, 32)),
        max_size=size * 5 // 4,
        eval_size=size,
        keep_aspect=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def _rtdetr(preset: str, backbone: BackboneName, backbone_lr: float, **sizes: Any) -> Config:
    return Config(
        model=RTDetrConfig(preset=preset, backbone=backbone, **sizes),
        transforms=square(),
        loss=LOSS,
        aids=AIDS,
        train=real_time_training(lr=1e-4, backbone_lr=backbone_lr, warmup_steps=2000),
    )


def rtdetr_nano() -> Config:
    """Return an RT-DETRv2 of three million parameters, which learns from little data."""
    sizes = {"hidden_dim": 128, "encoder_dim": 128, "ffn_dim": 512, "encoder_ffn_dim": 512, "expansion": 0.5}
    return Config(
        model=RTDetrConfig(
            preset="rtdetr-nano",
            backbone="nano",
            num_heads=4,
            decoder_layers=3,
            num_queries=100,
            fusion_blocks=1,
            **sizes,
        ),
        transforms=square(320, "resize"),
        loss=LOSS,
        aids=AIDS,
        train=TrainConfig(init="none", epochs=100, eval_every=5, batch_size=8, warmup_share=WARMUP_SHARE),
    )


def _preset(
    name: str, backbone: BackboneName, params_m: float, ap: float, backbone_lr: float, hub: str, **sizes: Any
) -> Preset:
    weights = PublishedWeights("", "", f"PekingU/{hub}", ap, "Apache-2.0") if hub else None
    make = partial(_rtdetr, name, backbone, backbone_lr, **sizes)
    return Preset(
        make,
        f"real-time, ResNet-{backbone.removeprefix('resnet')} backbone",
        params_m,
        published=weights,
        fast=FAST,
    )


_FROZEN = {"backbone_norm": "frozen", "frozen_stages": 1}
_SMALL = {"expansion": 0.5}
PRESETS: dict[str, Preset] = {
    "rtdetr-nano": Preset(
        rtdetr_nano, "little data, no pretrained weights: RT-DETRv2 in small", 3.4, fast=FAST_NANO
    ),
    "rtdetr-r18": _preset(
        "rtdetr-r18", "resnet18vd", 20.2, 48.1, 1e-4, "rtdetr_v2_r18vd", decoder_layers=3, **_SMALL
    ),
    "rtdetr-r34": _preset(
        "rtdetr-r34", "resnet34vd", 31.4, 49.9, 5e-5, "rtdetr_v2_r34vd", decoder_layers=4, **_SMALL
    ),
    "rtdetr-r50-m": _preset(
        "rtdetr-r50-m", "resnet50vd", 36.6, 51.9, 1e-5, "", decoder_layers=6, eval_layers=3, **_SMALL, **_FROZEN
    ),
    "rtdetr-r50": _preset(
        "rtdetr-r50", "resnet50vd", 42.9, 53.4, 1e-5, "rtdetr_v2_r50vd", decoder_layers=6, **_FROZEN
    ),
    "rtdetr-r101": _preset(
        "rtdetr-r101",
        "resnet101vd",
        76.6,
        54.3,
        1e-6,
        "rtdetr_v2_r101vd",
        decoder_layers=6,
        encoder_dim=384,
        encoder_ffn_dim=2048,
        **_FROZEN,
    ),
}
