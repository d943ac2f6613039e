"""Augmentation of whole batches on the device, flips and colours, and colours of one image on the host.

Workers have then only to cut and resize. What happens to an image is drawn on the host, from a seed: the device is
never waited for. Colours are those of SSD's photometric distortion (arXiv:1512.02325): brightness, contrast,
saturation, hue and order of channels, done image by image with torchvision's functions (:func:`distort_image`),
or to a padded batch (:func:`distort_batch`).

Shapes: B images, H x W padded height and width in pixels.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv_functional

from detrkit.config import TransformConfig
from detrkit.data.coco import Sample
from detrkit.types import Batch, GroundTruth, Target

BRIGHTNESS = 0.125
CONTRAST = 0.5
SATURATION = 0.5
HUE = 0.05
"""Greatest change at strength 1, as in torchvision's ``RandomPhotometricDistort``: factors lie around 1, hue is in
turns around 0."""

_LUMA = (0.2989, 0.587, 0.114)
"""Of torchvision's gray."""


def augments_on_device(config: TransformConfig, device_type: str) -> bool:
    """Return True if flips and colours are left to :func:`augment_batch`.

    ``auto`` leaves a mere flip to the workers: it costs them nothing, and samples stay the same on every machine.

    Args:
        config: Its ``on_device`` decides.
        device_type: Device of the training, ``cuda`` or ``cpu``.
    """
    if config.on_device == "auto":
        return device_type == "cuda" and _changes_colours(config)
    return config.on_device


def augment_batch(batch: Batch, config: TransformConfig, seed: int) -> Batch:
    """Flip and distort the images of a batch, each in its own way; padding stays where it is, and 0.

    Args:
        batch: On any device.
        config: Probabilities and strength.
        seed: Everything random is a function of it.

    Returns:
        A new batch on the same device; its objects follow the images.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(batch.sizes_hw)
    mirrored = torch.rand(count, generator=generator) < config.flip
    upside_down = torch.rand(count, generator=generator) < config.vertical_flip
    flips, sizes_hw = torch.stack([mirrored, upside_down], dim=1), torch.tensor(batch.sizes_hw)
    images = _flip(batch.images, flips, sizes_hw)
    if _changes_colours(config):
        distortions = draw_distortions(config, count, generator).to(images.device)
        images = distort_batch(images, distortions, batch.padding_mask)
    truth = _flip_truth(batch.truth, flips, sizes_hw)
    return dataclasses.replace(batch, images=images, truth=truth)


def _changes_colours(config: TransformConfig) -> bool:
    return config.photometric > 0 or config.channel_shuffle > 0


def _flip(pixels: Tensor, flips: Tensor, sizes_hw: Tensor) -> Tensor:
    """Mirror some images or masks, each within its own size.

    Args:
        pixels: ``[n, H, W]`` or ``[n, 3, H, W]``.
        flips: Left and right, and top and bottom, bool ``[n, 2]`` on the host.
        sizes_hw: Size of the image that each is or lies on, int64 ``[n, 2]`` on the host.
    """
    for flipped, own, axis in ((flips[:, :1], sizes_hw[:, 1:], -1), (flips[:, 1:], sizes_hw[:, :1], -2)):
        if not flipped.any():
            continue
        places = torch.arange(pixels.shape[axis]).expand(len(flips), -1)
        sources = torch.where((places < own) & flipped, own - 1 - places, places)
        shape = [len(flips)] + [1] * (pixels.ndim - 1)
        shape[axis] = pixels.shape[axis]
        index = sources.view(shape).to(pixels.device, non_blocking=True)
        pixels = pixels.gather(axis, index.expand_as(pixels))
    return pixels


def _flip_truth(truth: GroundTruth, flips: Tensor, sizes_hw: Tensor) -> GroundTruth:
    """Mirror masks, and boxes: they are relative to each image, so a flip turns a centre x into 1 - x."""
    counts = torch.tensor(truth.counts)
    flips = flips.repeat_interleave(counts, dim=0)
    masks = truth.masks
    if masks is not None:
        masks = _flip(masks, flips, sizes_hw.repeat_interleave(counts, dim=0))
    flips = flips.to(truth.boxes_cxcywh.device, non_blocking=True)
    centers, sides = truth.boxes_cxcywh[:, :2], truth.boxes_cxcywh[:, 2:]
    boxes = torch.cat([torch.where(flips, 1 - centers, centers), sides], dim=1)
    return dataclasses.replace(truth, boxes_cxcywh=boxes, masks=masks)


@dataclasses.dataclass(frozen=True)
class Distortions:
    """Changes of the colours of each image; 1, or 0 for hue, does nothing.

    Args:
        brightness: Factors ``[B]``.
        contrast: Factors ``[B]``, away from the image's mean gray.
        saturation: Factors ``[B]``, away from gray.
        hue: Turns of the colour circle ``[B]``.
        contrast_first: bool ``[B]``: contrast before saturation and hue, else after them.
        channels: ``[B, 3]``: the channel that each channel is taken from.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    contrast_first: Tensor
    channels: Tensor

    def to(self, device: torch.device) -> Distortions:
        """Move the numbers to another device."""
        return Distortions(
            **{
                field.name: getattr(self, field.name).to(device, non_blocking=True)
                for field in dataclasses.fields(self)
            }
        )


def draw_distortions(config: TransformConfig, count: int, generator: torch.Generator | None = None) -> Distortions:
    """Draw for ``count`` images, on the host.

    Args:
        config: Its ``photometric`` is the probability of each change, ``channel_shuffle`` that of the last.
        count: Images.
        generator: Generator of random numbers; torch's own if not given.
    """
    values = torch.rand(count, 4, generator=generator) * 2 - 1
    values *= torch.rand(count, 4, generator=generator) < config.photometric
    values *= config.photometric_strength
    first, shuffled = torch.rand(count, 2, generator=generator).unbind(1)
    orders = torch.rand(count, 3, generator=generator).argsort(dim=1)
    return Distortions(
        brightness=1 + BRIGHTNESS * values[:, 0],
        contrast=1 + CONTRAST * values[:, 1],
        saturation=1 + SATURATION * values[:, 2],
        hue=HUE * values[:, 3],
        contrast_first=first < 0.5,
        channels=torch.where((shuffled < config.channel_shuffle)[:, None], orders, torch.arange(3)),
    )


class Photometric:
    """Change the colours of one image, on the host."""

    def __init__(self, config: TransformConfig):
        self.config = config

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Distort one sample."""
        return distort_image(image, draw_distortions(self.config, 1), 0), target


def distort_image(image: Tensor, distortions: Distortions, row: int) -> Tensor:
    """Change one image by torchvision's functions.

    Args:
        image: uint8, or float32 from 0 to 1, ``[3, h, w]``.
        distortions: Changes of many images.
        row: Number of this image among them.
    """
    brightness, contrast = float(distortions.brightness[row]), float(distortions.contrast[row])
    saturation, hue = float(distortions.saturation[row]), float(distortions.hue[row])
    contrast_first = bool(distortions.contrast_first[row])
    channels: list[int] = distortions.channels[row].tolist()
    plain = image.as_subclass(Tensor)
    if brightness != 1:
        plain = tv_functional.adjust_brightness(plain, brightness)
    if contrast != 1 and contrast_first:
        plain = tv_functional.adjust_contrast(plain, contrast)
    if saturation != 1:
        plain = tv_functional.adjust_saturation(plain, saturation)
    if hue:
        plain = tv_functional.adjust_hue(plain, hue)
    if contrast != 1 and not contrast_first:
        plain = tv_functional.adjust_contrast(plain, contrast)
    if channels != [0, 1, 2]:
        plain = tv_functional.permute_channels(plain, channels)
    return tv_tensors.Image(plain)


def distort_batch(images: Tensor, distortions: Distortions, padding_mask: Tensor) -> Tensor:
    """Change the colours of every image of a batch in its own way.

    The same as :func:`distort_image`, but for rounding: that one rounds uint8 down after every change, this one
    to the nearest once.

    Args:
        images: uint8 ``[B, 3, H, W]``.
        distortions: Changes of B images, on the same device.
        padding_mask: ``[B, H, W]``, True = padding; it counts in no mean and stays 0.

    Returns:
        uint8 ``[B, 3, H, W]``.
    """
    inside = ~padding_mask[:, None]
    pixels = inside.sum(dim=(1, 2, 3), keepdim=True)
    first = _per_image(distortions.contrast_first)
    contrast, unchanged = _per_image(distortions.contrast), torch.ones_like(_per_image(distortions.contrast))
    colours = images.to(torch.float32) / 255
    colours = (colours * _per_image(distortions.brightness)).clamp_(0, 1)
    colours = _change_contrast(colours, torch.where(first, contrast, unchanged), pixels)
    saturation = _per_image(distortions.saturation)
    colours = (colours * saturation + _gray(colours) * (1 - saturation)).clamp_(0, 1)
    colours = _turn_hue(colours, distortions.hue)
    colours = _change_contrast(colours, torch.where(first, unchanged, contrast), pixels)
    channels = distortions.channels[:, :, None, None].expand_as(colours)
    colours = colours.gather(1, channels) * inside
    return (colours * 255).round_().to(torch.uint8)


def _change_contrast(colours: Tensor, factor: Tensor, pixels: Tensor) -> Tensor:
    """Move colours away from the mean gray of all but padding, which is black here and adds nothing to it."""
    mean = _gray(colours).sum(dim=(1, 2, 3), keepdim=True) / pixels
    return (colours * factor + mean * (1 - factor)).clamp_(0, 1)


def _turn_hue(colours: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue, in HSV; saturation and value stay.

    Args:
        colours: 0 to 1, ``[B, 3, H, W]``.
        turns: ``[B]``.
    """
    red, green, blue = colours.unbind(1)
    least, value = torch.aminmax(colours, dim=1)
    chroma = value - least
    safe = torch.where(chroma > 0, chroma, 1)
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixth = sixth + 6 * turns[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        ramp = (offset + sixth).remainder(6)
        channels.append(value - chroma * torch.minimum(ramp, 4 - ramp).clamp(0, 1))
    return torch.stack(channels, dim=1)


def _gray(colours: Tensor) -> Tensor:
    red, green, blue = colours.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
