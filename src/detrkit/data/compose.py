"""Composition of several images into one: mosaic and mixup, with partners from the same data set.

Partners are drawn from torch's global generator, which :class:`detrkit.data.coco.CocoDataset` seeds for every
sample, so any number of workers composes the same. ``area`` of every object stays in pixels of the file that it
comes from; ``image_id`` and ``orig_size_hw`` are those of the first image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torchvision import tv_tensors

from detrkit.classes import SizeHW
from detrkit.config import TransformConfig
from detrkit.data.coco import Sample, SampleKey
from detrkit.data.geometry import crop_sample, resize_sample
from detrkit.errors import ImageError
from detrkit.preprocess import image_size_hw
from detrkit.types import Target

LEAST_SIDE = 32
"""Pixels; an image with a shorter side is not composed: nothing could be seen on its tiles."""

MOSAIC_CENTER = (0.3, 0.7)
"""Where the four tiles meet, in shares of the sides."""

MOSAIC_ZOOM = 2.0
"""Greatest enlargement of an image over what covers its tile; 1 gives the smallest objects."""

MIXUP_SHARE = (0.4, 0.6)
"""Share of the first image in a blend; both keep all their objects, so neither may fade away."""

_TRIES = 10
"""Partners to try until one is readable; a data set with more damage has other worries."""


class Readable(Protocol):
    """A data set, as far as composition needs one."""

    @property
    def on_bad_image(self) -> str:
        """error: an unreadable partner is one; skip: another is drawn in its place."""
        ...

    def __len__(self) -> int: ...

    def read_sample(self, row: int) -> Sample:
        """Read an image and its target, before any augmentation; raises ImageError."""
        ...


class ComposedTransform:
    """Augmentation that reads other images too, or depends on the epoch; see ``compose``.

    Args:
        config: Its ``mosaic`` and ``mixup`` are probabilities.
        steps: Steps for the composed image.
        last_steps: Steps for the image from ``close_epoch`` on.
        close_epoch: First epoch, from 0, without composition; None for never.
    """

    def __init__(
        self,
        config: TransformConfig,
        steps: Callable[[Tensor, Target], Sample],
        last_steps: Callable[[Tensor, Target], Sample],
        close_epoch: int | None = None,
    ):
        self.config, self.steps, self.last_steps, self.close_epoch = config, steps, last_steps, close_epoch

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Augment one image alone; it comes out as large as :meth:`compose` would make it, but for IoU crops."""
        _reseed(_draw_seed())
        return self.steps(image, target)

    def compose(self, dataset: Readable, key: SampleKey, sample: Sample) -> Sample:
        """Augment the image of a key, with partners from its data set.

        Args:
            dataset: Data set that partners are read from.
            key: Key of the image.
            sample: The image and target that ``dataset.read_sample`` gives for the key's row.

        Raises:
            ImageError: A partner is unreadable and the data set does not skip such images.
        """
        seed = _draw_seed()  # composing takes more or fewer random numbers; the steps shall not depend on that
        steps = self.last_steps
        if self.close_epoch is None or key.epoch < self.close_epoch:
            sample, steps = load_composed(dataset, key.row, sample, self.config), self.steps
        _reseed(seed)
        return steps(*sample)


def load_composed(dataset: Readable, row: int, sample: Sample, config: TransformConfig) -> Sample:
    """Compose the sample, perhaps, with other images of the data set beside it (mosaic) or over it (mixup).

    Args:
        dataset: Data set that partners are read from.
        row: Row of the first image; it is no partner of itself, or every object would be there twice.
        sample: The first image and its target; its size is kept.
        config: Its ``mosaic`` and ``mixup`` are probabilities.

    Raises:
        ImageError: A partner is unreadable and the data set does not skip such images.
    """
    makes_mosaic, makes_mixup = (torch.rand(2) < torch.tensor([config.mosaic, config.mixup])).tolist()
    if min(image_size_hw(sample[0])) < LEAST_SIDE:
        return sample
    if makes_mosaic:
        drawn = [_draw_partner(dataset, row) for _ in range(3)]
        partners = [partner for partner in drawn if partner is not None]
        if len(partners) == 3:
            sample = mosaic([sample, *partners])
    if makes_mixup and (partner := _draw_partner(dataset, row)) is not None:
        sample = mixup(sample, partner)
    return sample


def mosaic(samples: Sequence[Sample]) -> Sample:
    """Put four images together as the quarters of one that is as large as the first, each in any quarter.

    Args:
        samples: Four; sides of the first at least :data:`LEAST_SIDE`.
    """
    height, width = image_size_hw(samples[0][0])
    least, greatest = MOSAIC_CENTER
    y, x = (round(side * draw_float(least, greatest)) for side in (height, width))
    tiles = [(0, 0, y, x), (0, x, y, width - x), (y, 0, height - y, x), (y, x, height - y, width - x)]
    canvas = torch.empty((height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
    targets = []
    for place, sample in zip(torch.randperm(4).tolist(), samples, strict=True):
        top, left, *size = tiles[place]
        image, target = fill_tile(sample, (size[0], size[1]), draw_float(1, MOSAIC_ZOOM))
        canvas[:, top : top + size[0], left : left + size[1]] = image.as_subclass(Tensor)
        targets.append(_on_canvas(target, top, left, (height, width)))
    return tv_tensors.Image(canvas), join_targets(targets)


def mixup(first: Sample, second: Sample) -> Sample:
    """Blend two images, as large as the first, with the objects of both (arXiv:1710.09412, 1902.04103)."""
    image, target = first
    other, other_target = fill_tile(second, image_size_hw(image))
    share = draw_float(*MIXUP_SHARE)
    blend = torch.lerp(other.as_subclass(Tensor).float(), image.as_subclass(Tensor).float(), share)
    return tv_tensors.Image(blend.round_().to(torch.uint8)), join_targets([target, other_target])


def fill_tile(sample: Sample, size_hw: SizeHW, zoom: float = 1.0) -> Sample:
    """Cut out a random part of an image, resized to cover a tile.

    The part is cut before it is resized: a long strip resized as a whole would fill the memory.

    Args:
        sample: Image of any size, and its target.
        size_hw: Size of the tile.
        zoom: 1: the largest part that has the tile's shape; 2: half its sides.
    """
    image, target = sample
    height, width = image_size_hw(image)
    scale = zoom * max(size_hw[0] / height, size_hw[1] / width)
    part_hw = [min(max(1, round(own / scale)), side) for own, side in zip(size_hw, (height, width), strict=True)]
    top, left = (
        int(torch.randint(side - part + 1, ())) for side, part in zip((height, width), part_hw, strict=True)
    )
    image, target = crop_sample(tv_tensors.Image(image), target, top, left, part_hw[0], part_hw[1])
    return resize_sample(image, target, size_hw)


def join_targets(targets: Sequence[Target]) -> Target:
    """Join all objects of targets on the same canvas; all have masks, or none; the rest is the first's."""
    first = targets[0]
    joined = first.copy()
    corners = torch.cat([target["boxes"].as_subclass(Tensor) for target in targets])
    joined["boxes"] = tv_tensors.wrap(corners, like=first["boxes"])
    joined["labels"] = torch.cat([target["labels"] for target in targets])
    joined["area"] = torch.cat([target["area"] for target in targets])
    joined["iscrowd"] = torch.cat([target["iscrowd"] for target in targets])
    if "masks" in first:
        joined["masks"] = first["masks"].join([target["masks"] for target in targets[1:]])
    return joined


def _on_canvas(target: Target, top: int, left: int, size_hw: SizeHW) -> Target:
    """Move the target of a tile into pixels of the canvas."""
    moved = target.copy()
    corners = target["boxes"].as_subclass(Tensor) + torch.tensor([left, top, left, top])
    moved["boxes"] = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size_hw)
    if "masks" in target:
        moved["masks"] = target["masks"].pad(top, left, size_hw)
    return moved


def _draw_partner(dataset: Readable, own_row: int) -> Sample | None:
    """Draw another image of the data set; None if there is none, or only unreadable ones were drawn."""
    for _ in range(_TRIES if len(dataset) > 1 else 0):
        row = int(torch.randint(len(dataset) - 1, ()))
        try:
            return dataset.read_sample(row + (row >= own_row))
        except ImageError:
            if dataset.on_bad_image == "error":
                raise
    return None


def _draw_seed() -> int:
    return int(torch.randint(1 << 62, ()))


def _reseed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def draw_float(least: float, greatest: float) -> float:
    """Draw uniformly."""
    return least + (greatest - least) * float(torch.rand(()))
