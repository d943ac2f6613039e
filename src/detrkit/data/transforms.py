"""The augmentation of training, step by step, and the resize of evaluation, on uint8 images and their targets.

The default is DETR's recipe (arXiv:2005.12872, A.4, and the published code). Randomness comes from torch's global
generator, which :class:`detrkit.data.coco.CocoDataset` seeds for every sample. What becomes of boxes, areas and
masks is said in :mod:`detrkit.data.geometry`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detrkit.classes import SizeHW
from detrkit.config import TransformConfig
from detrkit.data.augment import Photometric
from detrkit.data.coco import Sample, Transform
from detrkit.data.compose import ComposedTransform, draw_float
from detrkit.data.geometry import crop_sample, flip_sample, pad_sample, resize_sample, select_objects
from detrkit.ops.images import DecodeTarget
from detrkit.preprocess import image_size_hw, resized_size_hw
from detrkit.types import Target

Step = Callable[[Tensor, Target], Sample]

# The paper's crop branch resizes before it crops; without a bound, a strip of 1 x 5000 pixels would fill 2 GiB.
# No image up to 13 times as long as wide is changed by it.
_LONGEST_BEFORE_CROP = 8192


def train_transform(config: TransformConfig, epochs: int | None = None, *, on_device: bool = False) -> Transform:
    """Build the augmentation of training.

    Args:
        config: Steps, how much and how often.
        epochs: Epochs of the whole training; ``close_after`` is a share of them, and without effect if not given.
        on_device: Leave flips and colours to :func:`detrkit.data.augment.augment_batch`.

    Returns:
        A transform; one that composes images or depends on the epoch is a
        :class:`detrkit.data.compose.ComposedTransform`, which the data set hands itself to.
    """
    steps = Steps(_steps(config, on_device, closed=False))
    last = None if epochs is None else close_epoch(config, epochs)
    if last is None and not (config.mosaic or config.mixup):
        return steps
    return ComposedTransform(config, steps, Steps(_steps(config, on_device, closed=True)), last)


def close_epoch(config: TransformConfig, epochs: int) -> int | None:
    """Return after how many epochs of so many mosaic, mixup and zoom-out end; None where nothing is to end."""
    if config.close_after == 1 or not (config.mosaic or config.mixup or config.zoom_out):
        return None
    return math.ceil(config.close_after * epochs)


def eval_transform(config: TransformConfig) -> Transform:
    """Build the resize of evaluation, without randomness."""
    return ResizeShortSide([config.eval_size], config.max_size, config.keep_aspect)


def needed_size(config: TransformConfig) -> DecodeTarget:
    """Return how large the augmentation of a config wants its images to be read.

    A crop shows detail of a larger image; that of scale jitter is accounted for, the rare small IoU crop is not.
    """
    zoom = max(1.0, config.scale_jitter[1])
    if not config.multi_scale:
        return DecodeTarget(round(zoom * config.eval_size), round(zoom * config.max_size))
    crop = max(config.crop_scales) if config.crop else 0
    return DecodeTarget(round(zoom * max(config.scales)), round(zoom * config.max_size), round(zoom * crop))


def largest_outputs(config: TransformConfig, sizes_hw: Iterable[SizeHW]) -> set[SizeHW]:
    """Return the largest sizes that images can have after the augmentation of training.

    Args:
        config: Augmentation of the training.
        sizes_hw: Sizes of the images before.
    """
    short = max(config.scales) if config.multi_scale else config.eval_size
    if not config.keep_aspect and not config.mosaic and not config.mixup:
        return {(short, short)}
    sizes = {resized_size_hw(size, short, config.max_size) for size in sizes_hw} or {(short, short)}
    if config.mosaic or config.mixup:
        longest = config.max_size
    else:  # crops of another shape than the image
        aspects = [2.0] if config.iou_crop else []
        if config.multi_scale and config.crop:
            least, greatest = config.crop_range
            aspects.append(greatest / least if min(config.crop_scales) >= least else config.max_size / short)
        if not aspects:
            return sizes
        longest = max(short, min(config.max_size, int(max(aspects) * short)))
    return sizes | {(short, longest), (longest, short)}


def _steps(config: TransformConfig, on_device: bool, closed: bool) -> list[Step]:
    """List the steps for one image, in order; a step that is turned off draws no random number."""
    steps: list[Step] = []
    if not on_device:
        steps.append(RandomFlip(config.flip))
        if config.vertical_flip:
            steps.append(RandomFlip(config.vertical_flip, vertical=True))
        if config.photometric or config.channel_shuffle:
            steps.append(Photometric(config))
    if config.zoom_out and not closed:
        fill = tuple(round(255 * mean) for mean in config.mean)
        # twice what the network sees: an IoU crop after it shall still find detail
        steps.append(ZoomOut(config.zoom_out, config.zoom_out_factor, fill, 2 * config.max_size))
    if config.iou_crop:
        steps.append(IoUCrop(config.iou_crop))
    if config.scale_jitter != (1.0, 1.0):
        steps.append(ScaleJitter(*config.scale_jitter, _resize_step(config)))
    else:
        steps.append(_resize_step(config))
    if config.min_box_side:
        steps.append(DropThin(config.min_box_side))
    return steps


def _resize_step(config: TransformConfig) -> Step:
    if not config.multi_scale:
        return ResizeShortSide([config.eval_size], config.max_size, config.keep_aspect)
    resize = ResizeShortSide(config.scales, config.max_size, config.keep_aspect)
    first = ResizeShortSide(config.crop_scales, _LONGEST_BEFORE_CROP)
    return CropBranch(config.crop, Steps([first, RandomSizeCrop(*config.crop_range), resize]), resize)


class Steps:
    """Steps one after the other."""

    def __init__(self, steps: Sequence[Step]):
        self.steps = tuple(steps)

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Augment one sample."""
        for step in self.steps:
            image, target = step(image, target)
        return image, target


class RandomFlip:
    """Mirror with a probability."""

    def __init__(self, probability: float, *, vertical: bool = False):
        self.probability, self.vertical = probability, vertical

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Flip one sample, or not."""
        if torch.rand(1) < self.probability:
            return flip_sample(image, target, vertical=self.vertical)
        return image, target


class CropBranch:
    """One of two steps: the paper's crop with a probability, else its plain resize."""

    def __init__(self, probability: float, crop: Step, resize: Step):
        self.probability, self.crop, self.resize = probability, crop, resize

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Do one of both."""
        # drawn as torchvision's RandomChoice does, so that seeds give the samples that they have always given
        weights = torch.tensor([1 - self.probability, self.probability])
        step = self.crop if int(torch.multinomial(weights, 1)) else self.resize
        return step(image, target)


class ResizeShortSide:
    """Resize the short side to one of several lengths by :func:`detrkit.preprocess.resized_size_hw`.

    torchvision's ``RandomShortestSize`` does the same with another rounding.

    Args:
        lengths: Pixels to draw from.
        longest: Greatest long side in pixels; None for no bound.
        keep_aspect: False: a square of that length.
    """

    def __init__(self, lengths: Sequence[int], longest: int | None = None, keep_aspect: bool = True):
        self.lengths = tuple(lengths)
        self.longest = longest
        self.keep_aspect = keep_aspect

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Resize one sample."""
        short = self.lengths[0]
        if len(self.lengths) > 1:
            short = self.lengths[int(torch.randint(len(self.lengths), ()))]
        size_hw = resized_size_hw(image_size_hw(image), short, self.longest, self.keep_aspect)
        return resize_sample(image, target, size_hw)


class RandomSizeCrop:
    """Crop a random rectangle; boxes are clipped, and objects without a pixel in it removed.

    Args:
        least: Least side in pixels; a smaller image keeps its whole side.
        greatest: Greatest side in pixels.
    """

    def __init__(self, least: int, greatest: int):
        self.least, self.greatest = least, greatest

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Crop one sample."""
        height, width = image_size_hw(image)
        crop_height, crop_width = self._draw_side(height), self._draw_side(width)
        top = _draw_int(0, height - crop_height)
        left = _draw_int(0, width - crop_width)
        return crop_sample(image, target, top, left, crop_height, crop_width)

    def _draw_side(self, side: int) -> int:
        return _draw_int(min(self.least, side), min(self.greatest, side))


class ScaleJitter:
    """Objects smaller or larger by a random factor than the resize after it would make them.

    Large-scale jitter (arXiv:2012.07177) without its fixed canvas, for batches are padded anyway: a factor above 1
    cuts a part out of the image, which is then resized as the whole would be; below 1 the resized image is shrunk.

    Args:
        least: Least factor.
        greatest: Greatest factor.
        resize: The step to the size that the network sees.
    """

    def __init__(self, least: float, greatest: float, resize: Step):
        self.least, self.greatest, self.resize = least, greatest, resize

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Cut and resize, or resize and shrink, one sample."""
        # even in the logarithm: halved as often as doubled
        factor = math.exp(draw_float(math.log(self.least), math.log(self.greatest)))
        if factor > 1:
            height, width = image_size_hw(image)
            part_hw = max(1, round(height / factor)), max(1, round(width / factor))
            top, left = _draw_int(0, height - part_hw[0]), _draw_int(0, width - part_hw[1])
            image, target = crop_sample(image, target, top, left, *part_hw)
        image, target = self.resize(image, target)
        if factor < 1:
            height, width = image_size_hw(image)
            image, target = resize_sample(
                image, target, (max(1, round(height * factor)), max(1, round(width * factor)))
            )
        return image, target


class ZoomOut:
    """Place the image somewhere on a larger canvas, as SSD did (arXiv:1512.02325): objects come out smaller.

    torchvision's ``RandomZoomOut`` makes a canvas of 16 times the pixels whatever the size of the image.

    Args:
        probability: Probability of doing anything.
        factor: Greatest side of the canvas, in sides of the image.
        fill: RGB, 0 to 255.
        longest: Greatest side of the canvas in pixels; where it would be longer, the image is shrunk first.
    """

    def __init__(self, probability: float, factor: float, fill: tuple[int, ...], longest: int):
        self.probability, self.factor, self.longest = probability, factor, longest
        self.fill = (fill[0], fill[1], fill[2])

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Pad one sample, or not."""
        if torch.rand(1) >= self.probability:
            return image, target
        factor = draw_float(1, self.factor)
        shares = torch.rand(2).tolist()
        height, width = image_size_hw(image)
        shrink = self.longest / (max(height, width) * factor)
        if shrink < 1:
            height, width = max(1, int(height * shrink)), max(1, int(width * shrink))
            image, target = resize_sample(image, target, (height, width))
        canvas_hw = (int(height * factor), int(width * factor))
        left, top = int((canvas_hw[1] - width) * shares[0]), int((canvas_hw[0] - height) * shares[1])
        return pad_sample(image, target, left, top, canvas_hw, self.fill)


class IoUCrop:
    """SSD's crop (arXiv:1512.02325): one that has at least a drawn IoU with an object whose centre is in it.

    Objects whose centre is outside are removed. The distribution is that of torchvision's ``RandomIoUCrop``, which
    draws one rectangle after the other (7 ms an image, as long as decoding it), divides by zero on an image of
    three pixels, and leaves labels and areas as they were.

    Args:
        probability: Probability of doing anything.
    """

    OPTIONS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)
    """Least IoU to draw from; None leaves the image as it is."""
    TRIALS = 40
    LEAST_SCALE = 0.3
    GREATEST_ASPECT = 2.0

    def __init__(self, probability: float):
        self.probability = probability

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Crop one sample, or not."""
        if torch.rand(1) >= self.probability or not len(target["boxes"]):
            return image, target
        while True:
            least_iou = self.OPTIONS[int(torch.randint(len(self.OPTIONS), ()))]
            if least_iou is None:
                return image, target
            regions = self._draw_regions(image_size_hw(image))
            corners = target["boxes"].as_subclass(Tensor)
            within = _centers_within(corners, regions)
            good = within & (box_iou(corners, regions) >= least_iou)
            found = torch.nonzero(good.any(dim=0)).flatten().tolist()
            if found:
                left, top, right, bottom = (int(edge) for edge in regions[found[0]].tolist())
                return crop_sample(image, target, top, left, bottom - top, right - left, within[:, found[0]])

    def _draw_regions(self, size_hw: SizeHW) -> Tensor:
        """Draw ``TRIALS`` random rectangles and keep those of an allowed shape; whole pixels XYXY, ``[r, 4]``."""
        size_wh = torch.tensor(size_hw[::-1], dtype=torch.float32)
        sides, places = torch.rand(2, self.TRIALS, 2)
        sides = torch.floor(size_wh * (self.LEAST_SCALE + (1 - self.LEAST_SCALE) * sides))
        corner = torch.floor((size_wh - sides) * places)
        aspect = sides[:, 0] / sides[:, 1].clamp(min=1)
        allowed = (aspect >= 1 / self.GREATEST_ASPECT) & (aspect <= self.GREATEST_ASPECT) & (sides >= 1).all(dim=1)
        return torch.cat([corner, corner + sides], dim=1)[allowed]


class DropThin:
    """Remove objects of which only a sliver is left.

    Args:
        least: Least side of a box in pixels.
    """

    def __init__(self, least: float):
        self.least = least

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Filter one sample."""
        corners = target["boxes"].as_subclass(Tensor)
        thick = (corners[:, 2:] - corners[:, :2] >= self.least).all(dim=1)
        return image, target if bool(thick.all()) else select_objects(target, thick)


def _centers_within(boxes_xyxy: Tensor, regions_xyxy: Tensor) -> Tensor:
    """Return True where a box has its centre inside a region, ``[n, r]``."""
    centers = ((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2)[:, None]
    return ((regions_xyxy[:, :2] < centers) & (centers < regions_xyxy[:, 2:])).all(dim=2)


def _draw_int(least: int, greatest: int) -> int:
    """Draw uniformly, both ends included."""
    return int(torch.randint(least, greatest + 1, ()))
