"""Sizes of objects as they reach the model, and how many the crops of training cut off.

Shapes: M objects that were followed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from detrkit.classes import SIZE_LIMITS
from detrkit.config import TransformConfig
from detrkit.data.coco import sample_seed
from detrkit.data.index import CocoIndex
from detrkit.data.transforms import train_transform
from detrkit.preprocess import Preprocessing
from detrkit.types import Target

LIMITS = (8, 16, 32)
"""Short sides in pixels. DETR's features have a stride of 32: what is smaller lies in a single one of them."""
SAMPLED_IMAGES = 200
_MOST_PIXELS = 2_000_000
"""Larger images are shrunk before the transforms run, which resize them to less than this anyway."""


@dataclasses.dataclass(frozen=True)
class InputStats:
    """Objects as the model sees them.

    Args:
        method: Way they were found, in words.
        images: Number of images that were followed.
        objects: Number of objects in them, without crowd regions.
        lost: Number of objects that did not reach the model.
        cut: Number of objects that reached it with less than half of their box.
        short_sides: Short side of each object that reached the model, in pixels of its input, float64 ``[M]``.
        small_objects: Number of small ones by COCO's count, under 32 x 32 pixels of the file, of those followed.
        small_lost: Number of these that did not reach the model.
    """

    method: str
    images: int
    objects: int
    lost: int
    cut: int
    short_sides: np.ndarray
    small_objects: int
    small_lost: int

    def share_below(self, pixels: float) -> float:
        """Return the share, 0 to 1, of the objects that reached the model with a shorter side than this."""
        return float((self.short_sides < pixels).mean()) if len(self.short_sides) else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        points = np.percentile(self.short_sides, (5, 25, 50, 75, 95)) if len(self.short_sides) else np.zeros(5)
        values = dataclasses.asdict(self)
        del values["short_sides"]
        return {
            **values,
            "short_side": dict(zip(("p5", "p25", "median", "p75", "p95"), points.tolist(), strict=True)),
            "share_below": {str(limit): self.share_below(limit) for limit in LIMITS},
        }


def eval_inputs(index: CocoIndex, config: TransformConfig) -> InputStats:
    """Compute what evaluation and prediction show the model, for every object, since nothing is random."""
    sizes = index.sizes_hw.astype(np.float64)
    rule = Preprocessing.from_config(config).resized_size_hw
    resized = np.array([rule((int(height), int(width))) for height, width in sizes]).reshape(-1, 2)
    scale_xy = np.repeat((resized / sizes)[:, ::-1], np.diff(index.offsets), axis=0)
    one = ~index.iscrowd
    sides = ((index.boxes_xyxy[:, 2:] - index.boxes_xyxy[:, :2]) * scale_xy)[one]
    small = int((index.area[one] < SIZE_LIMITS["medium"][0]).sum())
    how = f"computed for every image: short side {config.eval_size}, long side up to {config.max_size}"
    short_sides = sides.min(axis=1) if len(sides) else np.zeros(0)
    return InputStats(how, len(index), len(sides), 0, 0, short_sides, small, 0)


def train_inputs(
    index: CocoIndex, config: TransformConfig, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> InputStats:
    """Follow what training shows the model: its transforms, run once on black images of the right sizes.

    Objects are followed through flips, resizes and crops one by one. Mosaic and mixup are not run: they need more
    than one image.

    Args:
        index: Annotations.
        config: Transforms of training.
        seed: Seed of the draw and of the transforms.
        progress: Function called with images done and images in all.
    """
    with_objects = np.flatnonzero(np.diff(index.offsets))
    rows = np.sort(np.random.default_rng(seed).permutation(with_objects)[:SAMPLED_IMAGES])
    transform = train_transform(config.model_copy(update={"mosaic": 0.0, "mixup": 0.0}))
    objects, lost, cut, small, small_lost = 0, 0, 0, 0, 0
    short_sides = [np.zeros(0)]
    for done, row in enumerate(rows.tolist(), start=1):
        image, target = _black_sample(index, row)
        whole = target["area"].clone()  # what a crop leaves of it is its share of the box
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(sample_seed(seed, 0, row))
            _, result = transform(image, target)
        # short sides of what is left
        kept = result["labels"]
        boxes = result["boxes"].as_subclass(torch.Tensor)
        one = ~result["iscrowd"]
        short_sides.append((boxes[one][:, 2:] - boxes[one][:, :2]).amin(dim=1).double().numpy())
        # which objects arrived, and how much of each
        annotations = index.annotation_rows(row)
        followed = ~index.iscrowd[annotations]
        arrived = np.isin(np.arange(len(followed)), kept.numpy())
        is_small = index.area[annotations] < SIZE_LIMITS["medium"][0]
        objects += int(followed.sum())
        lost += int((followed & ~arrived).sum())
        cut += int((result["area"][one] < 0.5 * whole[kept[one]]).sum())
        small += int((followed & is_small).sum())
        small_lost += int((followed & is_small & ~arrived).sum())
        if progress is not None:
            progress(done, len(rows))
    how = f"the {config.recipe} recipe, run once on {len(rows):,} of {len(index):,} images"
    if config.mosaic or config.mixup:
        how += ", without mosaic and mixup"
    return InputStats(how, len(rows), objects, lost, cut, np.concatenate(short_sides), small, small_lost)


def _black_sample(index: CocoIndex, row: int) -> tuple[tv_tensors.Image, Target]:
    """Make a black image of the right size and its objects, labelled by position to be followed."""
    height, width = (int(side) for side in index.sizes_hw[row])
    factor = min(1.0, math.sqrt(_MOST_PIXELS / (height * width)))
    size_hw = (max(1, round(height * factor)), max(1, round(width * factor)))
    rows = index.annotation_rows(row)
    scale = np.array([size_hw[1] / width, size_hw[0] / height] * 2)
    target = Target(
        boxes=tv_tensors.BoundingBoxes(
            torch.from_numpy((index.boxes_xyxy[rows] * scale).astype(np.float32)),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=size_hw,
        ),
        labels=torch.arange(rows.stop - rows.start),
        area=torch.ones(rows.stop - rows.start),
        iscrowd=torch.from_numpy(index.iscrowd[rows].copy()),
        image_id=int(index.image_ids[row]),
        orig_size_hw=(height, width),
    )
    # Pixels lie one after the other, as the decoder gives them: resizing is four times faster from that.
    pixels = torch.zeros((*size_hw, 3), dtype=torch.uint8).permute(2, 0, 1)
    return tv_tensors.Image(pixels), target
