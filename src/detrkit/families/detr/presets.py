"""Presets of classic DETR: plain functions returning configs, and the facts of the published weights.

No torch in here: ``detrkit models`` and ``--help`` read this page.
"""

from __future__ import annotations

from typing import Any

from detrkit.config import BackboneName, Config, DataConfig, TrainConfig, TransformConfig
from detrkit.families.detr.config import DetrConfig
from detrkit.families.preset import Preset, PublishedWeights

_BASE_URL = "https://dl.fbaipublicfiles.com/detr/"
_R50_SHA256 = "e632da11ec76ae67bac2f8579fbed3724e08dead7d200ca13e019b197784eadc"
_R101_SHA256 = "2c7b67e52d2e687cefa3c4a5e701a148664159c96725c62984600d2d9d5c4104"


_BACKBONE_FILES: dict[BackboneName, str] = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
}


def _paper(
    preset: str,
    backbone: BackboneName,
    summary: str,
    params_m: float,
    sha256: str = "",
    box_ap: float = 0.0,
    pq: float | None = None,
) -> Preset:
    """Return the paper's DETR on a backbone (table 1), with the published weights if there are any."""
    hub_name = preset.removeprefix("detr-").replace("r50", "resnet-50").replace("r101", "resnet-101")
    url = f"{_BASE_URL}{preset}-{sha256[:8]}.pth"
    published = PublishedWeights(url, sha256, f"facebook/detr-{hub_name}", box_ap, "Apache-2.0", pq)
    model = DetrConfig(
        preset=preset, backbone=backbone, dilation="-dc5" in preset, masks=preset.endswith("-panoptic")
    )
    file = _BACKBONE_FILES[backbone]
    return Preset(lambda: Config(model=model), summary, params_m, file, published if sha256 else None)


def detr_tiny() -> Config:
    """Return a DETR of about a million parameters for images of 128 pixels, which learns the demo in minutes."""
    return Config(
        model=_small("detr-tiny", "tiny", num_queries=25, encoder_layers=1, ffn_dim=256),
        transforms=TransformConfig(recipe="resize", scales=(128,), max_size=192, eval_size=128),
        data=DataConfig(workers=0),  # decoding so small images costs less than handing them over
        train=TrainConfig(init="none", epochs=14, eval_every=2, batch_size=16),
    )


def detr_tiny_panoptic() -> Config:
    """Return the tiny DETR with masks, boxes and masks being learned together."""
    tiny = detr_tiny()
    model = tiny.model.model_copy(update={"preset": "detr-tiny-panoptic", "masks": True})
    return tiny.model_copy(update={"model": model})


def detr_nano() -> Config:
    """Return a classic DETR of under three million parameters and stride 16, for few images and no weights."""
    return Config(
        model=_small(
            "detr-nano",
            "nano",
            num_queries=100,
            encoder_layers=2,
            ffn_dim=512,
            backbone_norm="batch",
            frozen_stages=0,
        ),
        transforms=TransformConfig(recipe="resize", scales=(320,), max_size=480, eval_size=320),
        train=TrainConfig(init="none", epochs=100, eval_every=5, batch_size=8),
    )


def _small(preset: str, backbone: BackboneName, **others: Any) -> DetrConfig:
    """Return the network of small presets: the classic graph, which knows where it looks from the start."""
    return DetrConfig(
        preset=preset,
        backbone=backbone,
        hidden_dim=128,
        num_heads=4,
        decoder_layers=3,
        dropout=0.0,
        pre_norm=True,
        position_temperature=20.0,
        position_scale=25.0,
        position_at_input=True,
        query_reference=True,
        **others,
    )


_SMALL_FAST = {"model.query_init": "grid", "train.lr": 1e-3, "train.backbone_lr": 1e-3}


PRESETS: dict[str, Preset] = {
    "detr-tiny": Preset(
        detr_tiny, "demo and tests: small images, learns on a CPU in minutes", 1.1, fast=_SMALL_FAST
    ),
    "detr-nano": Preset(
        detr_nano,
        "little data, no pretrained weights: stride 16, the classic graph",
        2.5,
        fast={**_SMALL_FAST, "aids.denoising": 2},
    ),
    "detr-r18": _paper("detr-r18", "resnet18", "the paper's transformer on a light backbone", 28.9),
    "detr-r34": _paper("detr-r34", "resnet34", "the paper's transformer on a middling backbone", 39.0),
    "detr-r50": _paper("detr-r50", "resnet50", "the paper's DETR", 41.5, _R50_SHA256, 42.0),
    "detr-r50-dc5": _paper(
        "detr-r50-dc5", "resnet50", "finer last stage, at twice the cost", 41.5, "f0fb7ef5", 43.3
    ),
    "detr-r101": _paper("detr-r101", "resnet101", "deeper backbone", 60.5, _R101_SHA256, 43.5),
    "detr-r101-dc5": _paper("detr-r101-dc5", "resnet101", "both: the best published AP", 60.5, "a2e86def", 44.9),
    "detr-tiny-panoptic": Preset(
        detr_tiny_panoptic, "demo and tests with masks: small images", 1.4, fast=_SMALL_FAST
    ),
    "detr-r50-panoptic": _paper(
        "detr-r50-panoptic", "resnet50", "a mask for each object, and stuff", 42.8, "00ce5173", 38.8, 43.4
    ),
    "detr-r50-dc5-panoptic": _paper(
        "detr-r50-dc5-panoptic", "resnet50", "masks, finer last stage", 42.8, "da08f1b1", 40.2, 44.6
    ),
    "detr-r101-panoptic": _paper(
        "detr-r101-panoptic", "resnet101", "masks, deeper backbone", 61.7, "40021d53", 40.1, 45.1
    ),
}
