"""Flip, crop, resize and pad an image together with all that its target says of it.

``area`` of a target stays in pixels of the original image: resizing and padding leave it, cropping takes the
share that was cut off, of the mask where there is one, else of the box. Nothing given is changed in place.

Shapes: H x W height and width in pixels, n objects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv_functional

from detrkit.classes import SizeHW
from detrkit.data.coco import Sample
from detrkit.masks import LazyMasks
from detrkit.preprocess import image_size_hw, resize_image
from detrkit.types import Target

_TINY = torch.finfo(torch.float32).tiny


def flip_sample(image: Tensor, target: Target, *, vertical: bool = False) -> Sample:
    """Mirror left and right, or top and bottom."""
    kernel = tv_functional.vertical_flip if vertical else tv_functional.horizontal_flip
    return kernel(image), _moved(target, kernel, lambda masks: masks.flip(vertical=vertical))


def resize_sample(image: Tensor, target: Target, size_hw: SizeHW) -> Sample:
    """Resize to a size, see :func:`detrkit.preprocess.resize_image`; masks take the nearest pixel."""
    resized = _moved(
        target, lambda boxes: tv_functional.resize(boxes, list(size_hw)), lambda masks: masks.resize(size_hw)
    )
    return tv_tensors.Image(resize_image(image.as_subclass(Tensor), size_hw)), resized


def pad_sample(
    image: Tensor, target: Target, left: int, top: int, size_hw: SizeHW, fill: tuple[int, int, int]
) -> Sample:
    """Place the image on a canvas of a colour, its corner at (left, top).

    Args:
        image: uint8 ``[3, H, W]``.
        target: Objects of the image.
        left: Columns of the canvas before the image.
        top: Rows of the canvas above it.
        size_hw: Size of the canvas.
        fill: RGB, 0 to 255.
    """
    height, width = image_size_hw(image)
    borders = [left, top, size_hw[1] - width - left, size_hw[0] - height - top]
    padded = _moved(
        target, lambda boxes: tv_functional.pad(boxes, borders), lambda masks: masks.pad(top, left, size_hw)
    )
    # torchvision pads colours channel by channel, and loses the memory order that resizing is fast from
    canvas = (
        torch.tensor(fill, dtype=torch.uint8, device=image.device).expand(*size_hw, 3).clone().permute(2, 0, 1)
    )
    canvas[:, top : top + height, left : left + width] = image.as_subclass(Tensor)
    return tv_tensors.Image(canvas), padded


def crop_sample(
    image: Tensor, target: Target, top: int, left: int, height: int, width: int, keep: Tensor | None = None
) -> Sample:
    """Cut out a rectangle; see :func:`crop_target`."""
    region = (top, left, height, width)
    return tv_functional.crop(image, *region), crop_target(target, *region, keep=keep)


def crop_target(
    target: Target, top: int, left: int, height: int, width: int, keep: Tensor | None = None
) -> Target:
    """Crop a target, in pixels of it: boxes clipped, objects without a pixel in it removed.

    Args:
        target: Objects of the whole image.
        top: First row of the crop.
        left: First column of the crop.
        height: Height of the crop.
        width: Width of the crop.
        keep: bool ``[n]``, objects to keep if they are inside; all if not given.
    """
    region = (top, left, height, width)
    cropped = _moved(target, lambda boxes: tv_functional.crop(boxes, *region), lambda masks: masks.crop(*region))
    whole, boxes = target["boxes"], cropped["boxes"]
    inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).as_subclass(Tensor)
    kept_share = _areas(boxes) / _areas(whole).clamp(min=_TINY)
    if "masks" in target:
        before, after = (torch.from_numpy(one["masks"].areas()) for one in (target, cropped))
        drawn = before > 0  # a mask may have been too thin to be drawn; then the box has to do
        inside &= ~drawn | (after > 0)
        kept_share = torch.where(drawn, after / before.clamp(min=1), kept_share)
    if keep is not None:
        inside &= keep
    cropped["area"] = target["area"] * kept_share
    return select_objects(cropped, inside)


def select_objects(target: Target, keep: Tensor) -> Target:
    """Keep some of the objects of a target.

    Args:
        target: Objects of an image.
        keep: bool or indices, ``[n]``.
    """
    selected = target.copy()
    selected["boxes"] = tv_tensors.wrap(target["boxes"][keep], like=target["boxes"])
    selected["labels"] = target["labels"][keep]
    selected["area"] = target["area"][keep]
    selected["iscrowd"] = target["iscrowd"][keep]
    if "masks" in target:
        selected["masks"] = target["masks"].take(keep.numpy())
    return selected


def _moved(
    target: Target, move_boxes: Callable[[Tensor], Any], move_masks: Callable[[LazyMasks], LazyMasks]
) -> Target:
    """Move boxes and masks of a target alike."""
    moved = target.copy()
    moved["boxes"] = move_boxes(target["boxes"])
    if "masks" in target:
        moved["masks"] = move_masks(target["masks"])
    return moved


def _areas(boxes_xyxy: Tensor) -> Tensor:
    plain = boxes_xyxy.as_subclass(Tensor)
    return (plain[:, 2:] - plain[:, :2]).prod(dim=1)
