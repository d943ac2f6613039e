"""What detrkit is trained with: the one table to edit.

In this order, later over earlier: the preset, its recipe of training, the data set and its sizes, ``changes``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way to train one of detrkit's models.

    Args:
        preset: The model.
        recipe: As ``train.recipe``.
        changes: Config values over both, dotted.
        against: Name of the entry whose final AP this one shall reach sooner.
    """

    preset: str
    recipe: Literal["plain", "fast"]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    against: str | None = None


_LARGE = {"transforms.scales": (480,), "transforms.max_size": 480, "transforms.eval_size": 480}
_RATES = {"train.lr": 1e-3, "train.backbone_lr": 1e-3, "train.clip_norm": 5.0}

RECIPES: dict[str, Recipe] = {
    "tiny-plain": Recipe("detr-tiny", "plain"),
    "tiny-fast": Recipe("detr-tiny", "fast", against="tiny-plain"),
    "nano-plain": Recipe("detr-nano", "plain"),
    "nano-fast": Recipe("detr-nano", "fast", against="nano-plain"),
    "two-stage-plain": Recipe("detr-nano-two-stage", "plain"),
    "two-stage-fast": Recipe("detr-nano-two-stage", "fast", against="two-stage-plain"),
    "rtdetr-nano-plain": Recipe("rtdetr-nano", "plain"),
    "rtdetr-nano-fast": Recipe("rtdetr-nano", "fast", against="rtdetr-nano-plain"),
    "dfine-n-plain": Recipe("dfine-n", "plain"),
    "dfine-n-fast": Recipe("dfine-n", "fast", against="dfine-n-plain"),
    # for small objects: a finest map of stride 16 wants larger squares
    "dfine-n-480": Recipe("dfine-n", "fast", {"transforms.recipe": "resize", **_LARGE}),
    # plain, but for the rates that small models need
    "tiny-plain-1e-3": Recipe("detr-tiny", "plain", _RATES, "tiny-plain"),
    "nano-plain-1e-3": Recipe("detr-nano", "plain", _RATES, "nano-plain"),
    # fast, one thing at a time as it is in plain
    "nano-no-dense": Recipe("detr-nano", "fast", {"aids.dense": "none"}, "nano-plain"),
    "nano-no-grid": Recipe("detr-nano", "fast", {"model.query_init": "normal"}, "nano-plain"),
    "nano-clip0.1": Recipe("detr-nano", "fast", {"train.clip_norm": 0.1}, "nano-plain"),
    "nano-no-ema": Recipe("detr-nano", "fast", {"train.ema_decay": None}, "nano-plain"),
    "nano-slow": Recipe("detr-nano", "fast", {"train.lr": 1e-4, "train.backbone_lr": 1e-5}, "nano-plain"),
    "nano-step": Recipe("detr-nano", "fast", {"train.schedule": "step"}, "nano-plain"),
    "two-stage-no-denoising": Recipe("detr-nano-two-stage", "fast", {"aids.denoising": 0}, "two-stage-plain"),
    "nano-no-denoising": Recipe("detr-nano", "fast", {"aids.denoising": 0}, "nano-plain"),
    # fast and more
    "nano-groups": Recipe("detr-nano", "fast", {"aids.groups": 4}, "nano-plain"),
    "nano-iou": Recipe("detr-nano", "fast", {"loss.class_targets": "iou"}, "nano-plain"),
    "two-stage-aligned": Recipe("detr-nano-two-stage", "fast", {"aids.dense": "aligned"}, "two-stage-plain"),
    "two-stage-iou": Recipe("detr-nano-two-stage", "fast", {"loss.class_targets": "iou"}, "two-stage-plain"),
    "two-stage-no-jitter": Recipe(
        "detr-nano-two-stage", "fast", {"transforms.scale_jitter": (1.0, 1.0)}, "two-stage-plain"
    ),
}
