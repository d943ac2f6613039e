"""Presets of the two-stage DETR: plain functions returning configs. No torch in here."""

from __future__ import annotations

from typing import Any

from detrkit.config import BackboneName, Config, DataConfig, LossConfig, MasksConfig, TrainConfig, TransformConfig
from detrkit.families.preset import Preset
from detrkit.families.two_stage.config import TwoStageConfig


def detr_tiny_two_stage() -> Config:
    """Return a DETR of two million parameters for images of 128 pixels, which learns the demo in minutes."""
    return Config(
        model=_two_stage("detr-tiny-two-stage", "mini", hidden_dim=96, ffn_dim=256, num_queries=30),
        transforms=TransformConfig(recipe="resize", scales=(128,), max_size=192, eval_size=128),
        data=DataConfig(workers=0),  # decoding so small images costs less than handing them over
        train=TrainConfig(init="none", epochs=8, eval_every=2, batch_size=16),
    )


def detr_nano_two_stage() -> Config:
    """Return a DETR of under four million parameters whose queries are chosen from the image: for little data."""
    return Config(
        model=_two_stage("detr-nano-two-stage", "nano", hidden_dim=128, ffn_dim=512, num_queries=100),
        transforms=TransformConfig(recipe="resize", scales=(320,), max_size=480, eval_size=320),
        train=TrainConfig(init="none", epochs=100, eval_every=5, batch_size=8),
    )


def _with_masks(boxes: Config, epochs: int) -> Config:
    """Return a preset with masks, learned together with boxes from random weights.

    The published weights of the mask losses are for a head on a trained detector; here they would count little.
    """
    model = boxes.model.model_copy(update={"preset": f"{boxes.model.preset}-panoptic", "masks": True})
    loss, masks = LossConfig(mask_weight=50.0, dice_weight=5.0), MasksConfig(panoptic_score=0.5, stuff="union")
    train = boxes.train.model_copy(update={"epochs": epochs, "eval_every": 5})  # masks take long to measure
    return boxes.model_copy(update={"model": model, "loss": loss, "masks": masks, "train": train})


def _two_stage(preset: str, backbone: BackboneName, **sizes: Any) -> TwoStageConfig:
    return TwoStageConfig(
        preset=preset,
        backbone=backbone,
        backbone_norm="batch",
        frozen_stages=0,
        levels=3,
        num_heads=4,
        encoder_layers=1,
        decoder_layers=3,
        dropout=0.0,
        **sizes,
    )


_FAST = {"aids.dense": "none", "aids.denoising": 2, "train.lr": 1e-3, "train.backbone_lr": 1e-3}

PRESETS: dict[str, Preset] = {
    "detr-tiny-two-stage": Preset(
        detr_tiny_two_stage,
        "the demo: small images, queries chosen from the image, learns on a CPU in minutes",
        2.0,
        fast=_FAST,
    ),
    "detr-tiny-two-stage-panoptic": Preset(
        lambda: _with_masks(detr_tiny_two_stage(), 5), "the demo with masks of things and stuff", 2.2, fast=_FAST
    ),
    "detr-nano-two-stage-panoptic": Preset(
        lambda: _with_masks(detr_nano_two_stage(), 100),
        "little data, no pretrained weights: masks too",
        4.0,
        fast=_FAST,
    ),
    "detr-nano-two-stage": Preset(
        detr_nano_two_stage, "little data, no pretrained weights: queries chosen from the image", 3.6, fast=_FAST
    ),
}
