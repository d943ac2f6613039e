"""DETR's training recipe (arXiv:2005.12872, A.4, and the published code) on uint8 images and their boxes.

Randomness comes from torch's global generator, which :class:`detrkit.data.coco.CocoDataset` seeds for every
sample. ``area`` of a target stays in pixels of the original image: resizing leaves it, cropping takes the share
of the box that was cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv_functional

from detrkit.config import TransformConfig
from detrkit.data.coco import Sample, Transform
from detrkit.ops.images import resize_image, resized_size_hw
from detrkit.types import Target


def train_transform(config: TransformConfig) -> Transform:
    """The augmentation of training: flip, then a multi-scale resize, with or without a crop before it."""
    flip = v2.RandomHorizontalFlip(config.flip)
    if config.recipe == "resize":
        return v2.Compose([flip, ResizeShortSide([config.eval_size], config.max_size)])
    resize = ResizeShortSide(config.scales, config.max_size)
    crop = v2.Compose([ResizeShortSide(config.crop_scales), RandomSizeCrop(*config.crop_range), resize])
    return v2.Compose([flip, v2.RandomChoice([resize, crop], p=[1 - config.crop, config.crop])])


def eval_transform(config: TransformConfig) -> Transform:
    """The resize of evaluation, without randomness."""
    return ResizeShortSide([config.eval_size], config.max_size)


class ResizeShortSide(v2.Transform):
    """Resize the short side to one of several lengths by :func:`detrkit.ops.images.resized_size_hw`.

    torchvision's ``RandomShortestSize`` does the same with another rounding.

    Args:
        lengths: Pixels to draw from.
        longest: Greatest long side in pixels; None for no bound.
    """

    def __init__(self, lengths: Sequence[int], longest: int | None = None):
        super().__init__()
        self.lengths = tuple(lengths)
        self.longest = longest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size for one sample."""
        height, width = v2.query_size(flat_inputs)
        short = self.lengths[0]
        if len(self.lengths) > 1:
            short = self.lengths[int(torch.randint(len(self.lengths), ()))]
        return {"size": resized_size_hw((height, width), short, self.longest)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image or boxes."""
        if isinstance(inpt, tv_tensors.Image):
            return tv_tensors.wrap(resize_image(inpt.as_subclass(torch.Tensor), params["size"]), like=inpt)
        return self._call_kernel(tv_functional.resize, inpt, size=list(params["size"]))


class RandomSizeCrop(v2.Transform):
    """Crop a random rectangle; boxes are clipped, and objects without a pixel in it removed.

    Args:
        least: Least side in pixels; a smaller image keeps its whole side.
        greatest: Greatest side in pixels.
    """

    def __init__(self, least: int, greatest: int):
        super().__init__()
        self.least, self.greatest = least, greatest

    def forward(self, image: tv_tensors.Image, target: Target) -> Sample:
        """Crop one sample."""
        height, width = image.shape[-2:]
        crop_height, crop_width = self._draw_side(height), self._draw_side(width)
        top = _draw_int(0, height - crop_height)
        left = _draw_int(0, width - crop_width)
        region = (top, left, crop_height, crop_width)
        return tv_functional.crop(image, *region), crop_target(target, *region)

    def _draw_side(self, side: int) -> int:
        return _draw_int(min(self.least, side), min(self.greatest, side))


def crop_target(target: Target, top: int, left: int, height: int, width: int) -> Target:
    """The target of a crop, in pixels of it: boxes clipped, objects outside it removed."""
    whole = target["boxes"]
    boxes = tv_functional.crop(whole, top, left, height, width)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    kept_share = _areas(boxes) / _areas(whole).clamp(min=torch.finfo(torch.float32).tiny)
    return Target(
        boxes=tv_tensors.wrap(boxes[keep], like=boxes),
        labels=target["labels"][keep],
        area=(target["area"] * kept_share)[keep],
        iscrowd=target["iscrowd"][keep],
        image_id=target["image_id"],
        orig_size_hw=target["orig_size_hw"],
    )


def _areas(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    plain = boxes_xyxy.as_subclass(torch.Tensor)
    return (plain[:, 2:] - plain[:, :2]).prod(dim=1)


def _draw_int(least: int, greatest: int) -> int:
    """Uniform, both ends included."""
    return int(torch.randint(least, greatest + 1, ()))
