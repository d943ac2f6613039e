"""A COCO data set in memory, and the torch data set over it.

Shapes: I images, N annotations of all of them, n annotations of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from detrkit.classes import SizeHW
from detrkit.config import PixelRange
from detrkit.data.cache import ImageCache
from detrkit.data.index import CocoIndex, check_inside
from detrkit.errors import ImageError
from detrkit.masks import LazyMasks
from detrkit.ops.images import DecodeTarget, decode_image, decode_reduced
from detrkit.ops.pixel_range import FULL
from detrkit.preprocess import image_size_hw
from detrkit.types import Target

logger = logging.getLogger(__name__)

Sample = tuple[Tensor, Target]
Transform = Callable[[tv_tensors.Image, Target], Sample]


class SampleKey(NamedTuple):
    """Which image, and in which epoch: all that augmentation may depend on, besides the seed."""

    epoch: int
    row: int


class CocoDataset(Dataset[Sample | None]):
    """Images and targets by :class:`SampleKey`; the same key always gives the same sample.

    Args:
        index: The annotations.
        images: Folder that file names are relative to.
        transform: From :mod:`detrkit.data.transforms`; None leaves images as they are.
        seed: Seed of augmentation.
        on_bad_image: skip: log an unreadable image and return None for it; error: raise.
            Evaluation uses error, since a skipped image would change its numbers.
        decode_target: Size that the transform wants at most; None if that is not known.
        fast_decode: Read a JPEG at a fraction of its size if that is enough; in training only.
        cache: Copies to read in place of the images.
        pixel_range: Values of 16- and 32-bit images that become black and white.
        masks: Give targets the masks of the index, if it has any; evaluation needs them by other ways.
    """

    def __init__(
        self,
        index: CocoIndex,
        images: Path,
        transform: Transform | None,
        *,
        seed: int = 0,
        on_bad_image: Literal["skip", "error"] = "skip",
        decode_target: DecodeTarget | None = None,
        fast_decode: bool = False,
        cache: ImageCache | None = None,
        pixel_range: PixelRange = FULL,
        masks: bool = False,
    ):
        # without what workers do not need
        self.index = dataclasses.replace(index, written=None, masks=index.masks if masks else None)
        self.images = Path(os.path.realpath(images))
        self.transform = transform
        self.seed = seed
        self.on_bad_image = on_bad_image
        self.decode_target = decode_target
        self.fast_decode = fast_decode
        self.cache = cache
        self.pixel_range = pixel_range
        self._reported: set[int] = set()
        self._size_reported = False

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: SampleKey) -> Sample | None:
        """Return one sample: uint8 ``[3, H, W]`` and its target, or None if the image is unreadable and skipped.

        Raises:
            ImageError: The image is unreadable and ``on_bad_image`` is error.
            AnnotationError: The file name leads out of the image folder.
        """
        epoch, row = key
        try:
            image, target = self.read_sample(row)
        except ImageError as error:
            if self.on_bad_image == "error":
                raise
            if row not in self._reported:
                self._reported.add(row)
                logger.warning("image left out of training: %s", error)
            return None
        if self.transform is None:
            return image, target
        with _seeded(sample_seed(self.seed, epoch, row)):
            compose = getattr(self.transform, "compose", None)  # see detrkit.data.compose
            if compose is not None:
                composed: Sample = compose(self, key, (tv_tensors.Image(image), target))
                return composed
            return self.transform(tv_tensors.Image(image), target)

    def read_sample(self, row: int) -> Sample:
        """Read an image, uint8 ``[3, H, W]``, and its target, before any augmentation.

        Raises:
            ImageError: The image is unreadable.
            AnnotationError: The file name leads out of the image folder.
        """
        image, file_hw = self._read(row)
        return image, self.read_target(row, file_hw, image_size_hw(image))

    def sample_size(self, key: SampleKey) -> SizeHW:
        """Return the size of the image that a key gives, without reading it.

        Augmentation is a function of seed, epoch and image, so it can be done beforehand on an image without
        pixels. Where images are composed of several, or a file is not of the listed size, this is an estimate.
        """
        listed_hw = (int(self.index.sizes_hw[key.row, 0]), int(self.index.sizes_hw[key.row, 1]))
        if self.transform is None:
            return listed_hw
        image = torch.empty((3, *listed_hw), dtype=torch.uint8, device="meta")
        try:
            target = self.read_target(key.row, listed_hw)
        except ImageError:  # told of when the image is read
            return listed_hw
        with _seeded(sample_seed(self.seed, key.epoch, key.row)):
            augmented, _ = self.transform(tv_tensors.Image(image), target)
        return image_size_hw(augmented)

    def _read(self, row: int) -> tuple[Tensor, SizeHW]:
        """Read the image of a row or its copy, perhaps at a fraction of its size, and the size of the file."""
        name = self.index.file_name(row)
        target = self.decode_target if self.fast_decode else None
        copy = self.cache.copy_of(row, name) if self.cache is not None else None
        if self.cache is not None and copy is not None:
            try:
                return decode_reduced(copy, target, self.pixel_range)[0], self.cache.size_hw(row)
            except ImageError as error:
                if row not in self._reported:
                    self._reported.add(row)
                    logger.warning("the image itself is read, since its copy cannot be: %s", error)
        check_inside(name, self.images)
        return decode_reduced(self.images / name, target, self.pixel_range)

    def read_image(self, row: int) -> Tensor:
        """Read the image file of a row, as :func:`detrkit.ops.images.decode_image` gives it."""
        name = self.index.file_name(row)
        check_inside(name, self.images)
        return decode_image(self.images / name, self.pixel_range)

    def read_target(self, row: int, size_hw: SizeHW, read_hw: SizeHW | None = None) -> Target:
        """Read the annotations of a row for an image whose file is ``size_hw`` pixels.

        Args:
            row: Row of the index.
            size_hw: Size of the file.
            read_hw: Size that it was read at, to which boxes and masks are scaled; that of the file if not given.

        Raises:
            ImageError: The PNG file of its masks cannot be read, or a mask is of another size.
        """
        read_hw = read_hw or size_hw
        index, rows = self.index, np.arange(*self.index.offsets[row : row + 2])
        listed_hw = (int(index.sizes_hw[row, 0]), int(index.sizes_hw[row, 1]))
        masks = None
        if index.masks is not None:
            drawn_hw = size_hw if listed_hw == size_hw[::-1] else listed_hw  # as boxes are fitted to the file
            masks = index.masks.lazy(rows, drawn_hw)
            if drawn_hw != listed_hw:
                masks.areas()  # an RLE of the other size is met now, not in the middle of augmentation
            if index.masks.folder is not None:
                rows, masks = self._with_pixels(row, rows, masks)
        boxes, area = index.boxes_xyxy[rows], index.area[rows]
        if listed_hw != size_hw:
            boxes, area = self._refit(row, boxes, area, listed_hw, size_hw)
        if read_hw != size_hw:
            boxes = boxes * (2 * (read_hw[1] / size_hw[1], read_hw[0] / size_hw[0]))
        target = Target(
            boxes=tv_tensors.BoundingBoxes(
                torch.from_numpy(boxes.astype(np.float32)),
                format=tv_tensors.BoundingBoxFormat.XYXY,
                canvas_size=read_hw,
            ),
            labels=torch.from_numpy(index.labels[rows].copy()),
            area=torch.from_numpy(area.astype(np.float32)),
            iscrowd=torch.from_numpy(index.iscrowd[rows].copy()),
            image_id=int(index.image_ids[row]),
            orig_size_hw=size_hw,
        )
        if masks is not None:
            target["masks"] = masks.resize(read_hw)
        return target

    def _with_pixels(self, row: int, rows: np.ndarray, masks: LazyMasks) -> tuple[np.ndarray, LazyMasks]:
        """Leave out panoptic segments that are listed, but have no pixel in their PNG file; told of once."""
        present = masks.areas() > 0
        if not present.all() and row not in self._reported:
            self._reported.add(row)
            logger.warning(
                "%s: %d of its %d panoptic segments have no pixel in the PNG file, and are left out; run detrkit "
                "data check",
                self.index.file_name(row),
                len(rows) - present.sum(),
                len(rows),
            )
        return rows[present], masks.take(present)

    def _refit(
        self, row: int, boxes: np.ndarray, area: np.ndarray, listed_hw: SizeHW, size_hw: SizeHW
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fit boxes and areas to a file that is not of the size its annotation says; told of once."""
        if not self._size_reported:
            self._size_reported = True
            logger.warning(
                "%s has height and width %s, its annotation says %s; boxes are fitted to the file, here and "
                "wherever else this is so",
                self.index.file_name(row),
                size_hw,
                listed_hw,
            )
        return fit_boxes(boxes, area, listed_hw, size_hw)


def fit_boxes(
    boxes: np.ndarray, area: np.ndarray, listed_hw: SizeHW, size_hw: SizeHW
) -> tuple[np.ndarray, np.ndarray]:
    """Fit boxes and areas to an image whose annotation says that it has another size.

    Height and width exchanged come from an EXIF orientation: people draw boxes on the upright image, so these
    stay. Any other difference means that the image was resized after annotation.
    """
    if listed_hw == size_hw:
        return boxes, area
    scale_y, scale_x = 1.0, 1.0
    if listed_hw != size_hw[::-1]:
        scale_y, scale_x = size_hw[0] / listed_hw[0], size_hw[1] / listed_hw[1]
    height, width = size_hw
    scaled = boxes * (scale_x, scale_y, scale_x, scale_y)
    return np.clip(scaled, 0, (width, height, width, height)), area * (scale_x * scale_y)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator for a while; ``torch.random.fork_rng`` looks at every device for that."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def sample_seed(seed: int, epoch: int, row: int) -> int:
    """Make a well-mixed 64-bit seed of three numbers, the same on every machine."""
    state = np.random.SeedSequence((seed, epoch, row)).generate_state(1, np.uint64)
    return int(state[0])
