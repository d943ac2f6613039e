"""Augmentation of whole batches on the device: flips and colours, so that the workers have only to cut and resize.

What happens to an image is drawn on the host, from a seed: the device is never waited for.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from detrkit.config import TransformConfig
from detrkit.data.geometry import flip_target
from detrkit.data.photometric import distort_batch, draw_distortions
from detrkit.types import Batch, GroundTruth


def augments_on_device(config: TransformConfig, device_type: str) -> bool:
    """Whether flips and colours are left to :func:`augment_batch`.

    ``auto`` leaves a mere flip to the workers: it costs them nothing, and samples stay the same on every machine.

    Args:
        config: Its ``on_device`` decides.
        device_type: Where training takes place, ``cuda`` or ``cpu``.
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
        A new batch on the same device; targets and packed truth follow the images.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(batch.sizes_hw)
    mirrored = torch.rand(count, generator=generator) < config.flip
    upside_down = torch.rand(count, generator=generator) < config.vertical_flip
    images, device = batch.images, batch.images.device
    if mirrored.any():
        images = _flip(images, mirrored, [width for _, width in batch.sizes_hw], axis=3)
    if upside_down.any():
        images = _flip(images, upside_down, [height for height, _ in batch.sizes_hw], axis=2)
    if _changes_colours(config):
        distortions = draw_distortions(config, count, generator).to(device)
        images = distort_batch(images, distortions, batch.padding_mask)
    targets = batch.targets
    for flips, vertical in ((mirrored, False), (upside_down, True)):
        targets = tuple(  # not strict: the blank image of a process that got none has no target
            flip_target(target, vertical=vertical) if flip else target
            for target, flip in zip(targets, flips.tolist(), strict=False)
        )
    truth = _flip_truth(batch.truth, mirrored, upside_down)
    return dataclasses.replace(batch, images=images, targets=targets, truth=truth)


def _changes_colours(config: TransformConfig) -> bool:
    return config.photometric > 0 or config.channel_shuffle > 0


def _flip(images: Tensor, flips: Tensor, sides: list[int], axis: int) -> Tensor:
    """Mirror some images within their own size, along one axis of ``[B, 3, H, W]``."""
    places = torch.arange(images.shape[axis]).expand(len(sides), -1)
    own = torch.tensor(sides)[:, None]
    sources = torch.where((places < own) & flips[:, None], own - 1 - places, places)
    shape = [len(sides), 1, 1, 1]
    shape[axis] = images.shape[axis]
    index = sources.view(shape).to(images.device, non_blocking=True)
    return images.gather(axis, index.expand_as(images))


def _flip_truth(truth: GroundTruth, mirrored: Tensor, upside_down: Tensor) -> GroundTruth:
    """Boxes are relative to each image, so a flip turns a centre x into 1 - x."""
    counts = torch.tensor(truth.counts)
    flips = torch.stack([mirrored, upside_down], dim=1).repeat_interleave(counts, dim=0)
    flips = flips.to(truth.boxes_cxcywh.device, non_blocking=True)
    centers, sides = truth.boxes_cxcywh[:, :2], truth.boxes_cxcywh[:, 2:]
    boxes = torch.cat([torch.where(flips, 1 - centers, centers), sides], dim=1)
    return dataclasses.replace(truth, boxes_cxcywh=boxes)
