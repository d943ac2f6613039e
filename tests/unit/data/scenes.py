"""Scenes whose pixels say where every object is, for the tests of augmentation."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from detrkit.config import RECIPES, TransformConfig
from detrkit.data.coco import Sample
from detrkit.errors import ImageError
from detrkit.masks import LazyMasks, MaskPatch, nearest
from detrkit.types import Target

LEVELS = (0, 85, 170, 255)
PALETTE = torch.tensor(
    [(r, g, b) for r in LEVELS for g in LEVELS for b in LEVELS if max(r, g, b) == 255], dtype=torch.uint8
)
"""37 colours, at least 85 apart in some channel; none is near black or the colour of padding."""

SMALL = {
    "scales": (96, 128),
    "max_size": 220,
    "crop_scales": (110, 160),
    "crop_range": (70, 110),
    "eval_size": 112,
}
"""Sizes that make a test fast."""

RECIPE_CONFIGS = {name: TransformConfig(recipe=name, **SMALL) for name in RECIPES}
OPTIONS = {
    "vertical_flip": {"vertical_flip": 0.5},
    "crop": {"crop": 1.0},
    "scale_jitter": {"scale_jitter": (0.3, 3.0)},
    "zoom_out": {"zoom_out": 1.0},
    "iou_crop": {"iou_crop": 1.0},
    "photometric": {"photometric": 0.7, "channel_shuffle": 0.5},
    "mosaic": {"mosaic": 1.0},
    "mixup": {"mixup": 1.0},
    "min_box_side": {"min_box_side": 3.0, "iou_crop": 1.0},
}
OPTION_CONFIGS = {name: TransformConfig(**{"crop": 0.0, **SMALL, **changes}) for name, changes in OPTIONS.items()}
SIZES = ((100, 150), (160, 90), (120, 120), (64, 200), (1, 1), (3, 3), (2, 500), (700, 1), (33, 35), (31, 90))
"""Height and width; strips and specks among them."""


def make_target(boxes: Tensor, size_hw: tuple[int, int], first_label: int = 0, masks: bool = False) -> Target:
    """Every third object is a crowd; the area is two thirds of the box, as that of a segmentation would be."""
    count = len(boxes)
    target = Target(
        boxes=tv_tensors.BoundingBoxes(boxes.float(), format="XYXY", canvas_size=size_hw),
        labels=torch.arange(first_label, first_label + count),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(1).float() * 2 / 3,
        iscrowd=torch.arange(first_label, first_label + count) % 3 == 2,
        image_id=1000 + first_label,
        orig_size_hw=size_hw,
    )
    if masks:
        drawn = torch.zeros(count, *size_hw, dtype=torch.bool)
        for mask, box in zip(drawn, boxes.round().long().tolist(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = True
        target["masks"] = masks_of(drawn.numpy())
    return target


def masks_of(drawn: np.ndarray) -> LazyMasks:
    """Masks of an image, bool ``[n, H, W]``, as a target has them."""
    patches = [functools.partial(MaskPatch.of_mask, mask) for mask in drawn]
    return LazyMasks.of_image(patches, np.ones(len(drawn), dtype=bool), drawn.shape[1:])


class DenseMasks:
    """Masks that every step is done to, pixel by pixel: what :class:`LazyMasks` has to be equal to."""

    def __init__(self, drawn: np.ndarray):
        self.drawn = drawn

    def __len__(self) -> int:
        return len(self.drawn)

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.drawn.shape[1], self.drawn.shape[2]

    def flip(self, *, vertical: bool = False) -> DenseMasks:
        return DenseMasks(np.flip(self.drawn, 1 if vertical else 2))

    def crop(self, top: int, left: int, height: int, width: int) -> DenseMasks:
        return DenseMasks(self.drawn[:, top : top + height, left : left + width])

    def resize(self, size_hw: tuple[int, int]) -> DenseMasks:
        rows, columns = map(nearest, self.size_hw, size_hw)
        return DenseMasks(self.drawn[:, rows][:, :, columns])

    def pad(self, top: int, left: int, size_hw: tuple[int, int]) -> DenseMasks:
        canvas = np.zeros((len(self), *size_hw), dtype=bool)
        canvas[:, top : top + self.size_hw[0], left : left + self.size_hw[1]] = self.drawn
        return DenseMasks(canvas)

    def take(self, keep: np.ndarray) -> DenseMasks:
        return DenseMasks(self.drawn[keep])

    def join(self, others: Sequence[DenseMasks]) -> DenseMasks:
        return DenseMasks(np.concatenate([self.drawn, *(other.drawn for other in others)]))

    def areas(self) -> np.ndarray:
        return np.asarray(self.drawn.sum(axis=(1, 2)))

    def draw(self, number: int, picture: np.ndarray) -> None:
        picture[: self.size_hw[0], : self.size_hw[1]] = self.drawn[number]

    def pixels(self) -> np.ndarray:
        return self.drawn


def random_scene(seed: int, size_hw: tuple[int, int], *, masks: bool = False) -> Sample:
    """Noise, with 0 to 5 boxes of any size anywhere; some cover everything, some are a fraction of a pixel."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size_hw
    image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)
    corners = torch.rand(seed % 6, 2, 2, generator=generator).sort(dim=1).values
    corners[corners.prod(dim=1)[:, 0] < 0.03] = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    boxes = corners.flatten(1) * torch.tensor([width, height, width, height])
    return tv_tensors.Image(image), make_target(boxes, size_hw, 10 * seed, masks)


def painted_scene(seed: int, size_hw: tuple[int, int] = (100, 150), *, masks: bool = False) -> Sample:
    """Black, with up to 4 rectangles of whole pixels apart from each other; see :func:`color_of`."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size_hw
    image = torch.zeros(height, width, 3, dtype=torch.uint8).permute(2, 0, 1)
    boxes = []
    for place in range(4):  # one in each quarter
        top, left = place // 2 * (height // 2), place % 2 * (width // 2)
        y = torch.randint(1, height // 2, (2,), generator=generator).sort().values
        x = torch.randint(1, width // 2, (2,), generator=generator).sort().values
        if y[1] - y[0] > 8 and x[1] - x[0] > 8:
            boxes.append([left + int(x[0]), top + int(y[0]), left + int(x[1]), top + int(y[1])])
    target = make_target(torch.tensor(boxes).reshape(-1, 4).float(), size_hw, 4 * seed, masks)
    for label, (x1, y1, x2, y2) in zip(target["labels"].tolist(), boxes, strict=True):
        image[:, y1:y2, x1:x2] = color_of(label)[:, None, None]
    return tv_tensors.Image(image), target


def color_of(label: int) -> Tensor:
    """Colour of an object of :func:`painted_scene`, ``[3, 1, 1]`` when broadcast."""
    return PALETTE[label % len(PALETTE)]


class Scenes:
    """Samples in memory, readable as a data set is."""

    def __init__(self, samples: Sequence[Sample], broken: Iterable[int] = (), on_bad_image: str = "skip"):
        self.samples, self.broken, self.on_bad_image = list(samples), set(broken), on_bad_image
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.samples)

    def read_sample(self, row: int) -> Sample:
        self.read.append(row)
        if row in self.broken:
            raise ImageError(f"row {row} is broken")
        return self.samples[row]


def assert_sound(image: Tensor, target: Target, before: Sequence[Target]) -> None:
    """What holds of every sample, whatever happened to it."""
    height, width = image.shape[-2:]
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    assert min(height, width) >= 1
    boxes = target["boxes"].as_subclass(Tensor)
    assert target["boxes"].canvas_size == (height, width)
    assert boxes.shape[1:] == (4,)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= -1e-3).all()
    assert (boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
    dtypes = [target[key].dtype for key in ("boxes", "labels", "area", "iscrowd")]  # type: ignore[literal-required]
    assert dtypes == [torch.float32, torch.int64, torch.float32, torch.bool]
    assert {len(target[key]) for key in ("labels", "area", "iscrowd")} == {len(boxes)}  # type: ignore[literal-required]
    if "masks" in target:
        assert (len(target["masks"]), *target["masks"].size_hw) == (len(boxes), height, width)
    known = {
        label: (area, crowd)
        for one in before
        for label, area, crowd in zip(
            one["labels"].tolist(), one["area"].tolist(), one["iscrowd"].tolist(), strict=True
        )
    }
    for label, area, crowd in zip(
        target["labels"].tolist(), target["area"].tolist(), target["iscrowd"].tolist(), strict=True
    ):
        assert 0 < area <= known[label][0] * (1 + 1e-4)
        assert crowd == known[label][1]
    assert (target["image_id"], target["orig_size_hw"]) == (before[0]["image_id"], before[0]["orig_size_hw"])


def assert_painted(image: Tensor, target: Target, reach: float = 2.6, tolerance: int = 30) -> int:
    """Every box is full of its object's colour, and its colour is nowhere else; returns the boxes looked into.

    ``reach`` is how far in pixels a border may be off, from rounding and from the blur of resizing.
    """
    pixels = image.as_subclass(Tensor).long()
    looked, labels = 0, target["labels"].tolist()
    for row, (label, box) in enumerate(zip(labels, target["boxes"].tolist(), strict=True)):
        close = (pixels - color_of(label)[:, None, None].long()).abs().amax(0) <= tolerance
        x1, y1, x2, y2 = box
        inner = (
            slice(int(y1 + reach) + 1, max(0, int(y2 - reach))),
            slice(int(x1 + reach) + 1, max(0, int(x2 - reach))),
        )
        outer = (
            slice(max(0, int(y1 - reach)), int(y2 + reach) + 1),
            slice(max(0, int(x1 - reach)), int(x2 + reach) + 1),
        )
        assert close[inner].all(), (label, box)
        looked += close[inner].numel() > 0
        if labels.count(label) > 1:  # the same image twice in a mosaic
            continue
        close[outer] = False
        # where two other colours meet, their blend may look like this one, a pixel or two wide
        patches = -torch.nn.functional.max_pool2d(-close[None].float(), 3, stride=1)
        assert not patches.any(), (label, box)
        if "masks" in target:
            mask = target["masks"].pixels()[row]
            assert mask[inner].all()
            mask[outer] = False
            assert not mask.any()
    return looked
