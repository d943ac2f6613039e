"""A COCO data set in memory, and the torch data set over it.

Shapes: I images, N annotations of all of them, n annotations of one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from detrkit.data.coco_json import read_coco
from detrkit.data.index import CocoIndex, check_inside, missing_images
from detrkit.errors import ImageError
from detrkit.ops.images import decode_image
from detrkit.types import SizeHW, Target

__all__ = ["CocoDataset", "CocoIndex", "Sample", "SampleKey", "Transform", "missing_images", "read_coco"]

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
        seed: Of augmentation.
        on_bad_image: skip: log an unreadable image and return None for it; error: raise.
            Evaluation uses error, since a skipped image would change its numbers.
    """

    def __init__(
        self,
        index: CocoIndex,
        images: Path,
        transform: Transform | None,
        *,
        seed: int = 0,
        on_bad_image: Literal["skip", "error"] = "skip",
    ):
        self.index = index
        self.images = Path(os.path.realpath(images))
        self.transform = transform
        self.seed = seed
        self.on_bad_image = on_bad_image
        self._reported: set[int] = set()
        self._size_reported = False

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: SampleKey) -> Sample | None:
        """One sample: uint8 ``[3, H, W]`` and its target, or None if the image is unreadable and skipped.

        Raises:
            ImageError: The image is unreadable and ``on_bad_image`` is error.
            AnnotationError: The file name leads out of the image folder.
        """
        epoch, row = key
        try:
            image = self.read_image(row)
        except ImageError as error:
            if self.on_bad_image == "error":
                raise
            if row not in self._reported:
                self._reported.add(row)
                logger.warning("image left out of training: %s", error)
            return None
        target = self.read_target(row, (image.shape[-2], image.shape[-1]))
        if self.transform is None:
            return image, target
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(sample_seed(self.seed, epoch, row))
            return self.transform(tv_tensors.Image(image), target)

    def read_image(self, row: int) -> Tensor:
        """The image file of a row, as :func:`detrkit.ops.images.decode_image` gives it."""
        name = self.index.file_name(row)
        check_inside(name, self.images)
        return decode_image(self.images / name)

    def read_target(self, row: int, size_hw: SizeHW) -> Target:
        """The annotations of a row for an image whose file is ``size_hw`` pixels."""
        index, rows = self.index, self.index.annotation_rows(row)
        boxes, area = index.boxes_xyxy[rows], index.area[rows]
        listed_hw = (int(index.sizes_hw[row, 0]), int(index.sizes_hw[row, 1]))
        if listed_hw != size_hw:
            boxes, area = self._refit(row, boxes, area, listed_hw, size_hw)
        return Target(
            boxes=tv_tensors.BoundingBoxes(
                torch.from_numpy(boxes.astype(np.float32)),
                format=tv_tensors.BoundingBoxFormat.XYXY,
                canvas_size=size_hw,
            ),
            labels=torch.from_numpy(index.labels[rows].copy()),
            area=torch.from_numpy(area.astype(np.float32)),
            iscrowd=torch.from_numpy(index.iscrowd[rows].copy()),
            image_id=int(index.image_ids[row]),
            orig_size_hw=size_hw,
        )

    def _refit(
        self, row: int, boxes: np.ndarray, area: np.ndarray, listed_hw: SizeHW, size_hw: SizeHW
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes and areas for a file that is not of the size its annotation says.

        Height and width exchanged come from an EXIF orientation: people draw boxes on the upright image, so
        these stay. Any other difference means that files were resized after annotation.
        """
        if not self._size_reported:
            self._size_reported = True
            logger.warning(
                "%s has height and width %s, its annotation says %s; boxes are fitted to the file, here and "
                "wherever else this is so",
                self.index.file_name(row),
                size_hw,
                listed_hw,
            )
        scale_y, scale_x = 1.0, 1.0
        if listed_hw != size_hw[::-1]:
            scale_y, scale_x = size_hw[0] / listed_hw[0], size_hw[1] / listed_hw[1]
        height, width = size_hw
        scaled = boxes * (scale_x, scale_y, scale_x, scale_y)
        return np.clip(scaled, 0, (width, height, width, height)), area * (scale_x * scale_y)


def sample_seed(seed: int, epoch: int, row: int) -> int:
    """A well-mixed 64-bit seed from three numbers, the same on every machine."""
    state = np.random.SeedSequence((seed, epoch, row)).generate_state(1, np.uint64)
    return int(state[0])
