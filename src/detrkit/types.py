"""The contracts between the rooms of the house: what passes from data to model to evaluation.

Shapes: B images, H x W padded height and width in pixels, N objects of a whole batch, L decoder layers,
Q queries, S labels of the head of the head (without no-object), K detections of one image, h x w cells of a mask
map.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple, NotRequired, Protocol, TypedDict

import torch
from torch import Tensor
from torchvision.tv_tensors import BoundingBoxes

from detrkit.classes import SizeHW
from detrkit.detections import ImageDetections as ImageDetections
from detrkit.masks import LazyMasks


class Target(TypedDict):
    """The objects of one image, as torchvision's v2 transforms expect them.

    boxes: ``BoundingBoxes`` XYXY in pixels of the image it comes with, float32 ``[n, 4]``.
    labels: contiguous class ids, int64 ``[n]``. area: pixels of the original image, float32 ``[n]``.
    iscrowd: bool ``[n]``. image_id: the data set's own id. orig_size_hw: the file's size, EXIF applied.
    masks: pixels of the image that belong to each object, drawn by ``masks.pixels()``; where they were asked for.
    """

    boxes: BoundingBoxes
    labels: Tensor
    area: Tensor
    iscrowd: Tensor
    image_id: int
    orig_size_hw: SizeHW
    masks: NotRequired[LazyMasks]


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """Every object of a batch, image after image, as the matcher and the losses want them.

    Args:
        labels: Contiguous class ids, int64 ``[N]``; crowd regions are left out.
        boxes_cxcywh: ``[N, 4]`` float32, 0 to 1 relative to each image without its padding.
        counts: Objects of each image, on the host; sums to N.
        masks: Pixels of each object, bool ``[N, H, W]`` of the padded batch, False on padding; None unless the
            model learns masks.
        has_mask: False for objects without a mask of their own, for which ``masks`` has their box; on the host,
            empty where all have one.
    """

    labels: Tensor
    boxes_cxcywh: Tensor
    counts: tuple[int, ...]
    masks: Tensor | None = None
    has_mask: tuple[bool, ...] = ()


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images of several sizes in one tensor, padded at the bottom and on the right.

    Args:
        images: uint8 ``[B, 3, H, W]`` RGB, 0 where padded; normalised on the device, not here.
        padding_mask: bool ``[B, H, W]``, True = padding.
        truth: All objects of the batch, packed; the one place where they are.
        sizes_hw: Each image's size before padding, on the host.
        image_ids: The data set's id of each image; none for images that come from no data set.
        orig_sizes_hw: Size of each image file, in which detections are reported.
    """

    images: Tensor
    padding_mask: Tensor
    truth: GroundTruth
    sizes_hw: tuple[SizeHW, ...]
    image_ids: tuple[int, ...] = ()
    orig_sizes_hw: tuple[SizeHW, ...] = ()

    @property
    def is_padded(self) -> bool:
        """True if any image is smaller than the tensor; known on the host, so it costs no synchronisation."""
        height, width = self.images.shape[-2:]
        return any(size != (height, width) for size in self.sizes_hw)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Return the batch with images, mask and packed truth on another device."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, called by torch's loader when pinning is on."""
        return self._map_tensors(lambda tensor: tensor.pin_memory())

    def _map_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        truth = self.truth
        masks = None if truth.masks is None else change(truth.masks)
        truth = GroundTruth(change(truth.labels), change(truth.boxes_cxcywh), truth.counts, masks, truth.has_mask)
        return dataclasses.replace(
            self, images=change(self.images), padding_mask=change(self.padding_mask), truth=truth
        )

    def split(self, size: int) -> tuple[Batch, ...]:
        """Split into batches of at most ``size`` images, each padded no further than it needs; all are views."""
        count = len(self.sizes_hw)
        if size >= count:
            return (self,)
        ends = list(itertools.accumulate(self.truth.counts, initial=0))
        parts = []
        for start in range(0, count, size):
            images = slice(start, min(start + size, count))
            objects = slice(ends[images.start], ends[images.stop])
            sizes = self.sizes_hw[images]
            height, width = (max(side) for side in zip(*sizes, strict=True))
            masks = self.truth.masks
            truth = GroundTruth(
                self.truth.labels[objects],
                self.truth.boxes_cxcywh[objects],
                self.truth.counts[images],
                None if masks is None else masks[objects, :height, :width],
                self.truth.has_mask[objects],
            )
            pixels, mask = self.images[images, :, :height, :width], self.padding_mask[images, :height, :width]
            parts.append(Batch(pixels, mask, truth, sizes, self.image_ids[images], self.orig_sizes_hw[images]))
        return tuple(parts)


class DenseOutputs(NamedTuple):
    """Outputs of the heads for every image token of the encoder; in training only. M tokens.

    logits: ``[B, M, S + 1]``. boxes_cxcywh: ``[B, M, 4]``, 0 to 1. points: centres of the tokens (x, y), 0 to 1
    of the image without padding, ``[B or 1, M, 2]``. valid: False on padding, bool ``[B or 1, M]``.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    points: Tensor
    valid: Tensor


class GroupOutputs(NamedTuple):
    """Outputs of further sets of queries, each to be matched by itself; in training only. G sets.

    logits: ``[L, B, G, Q, S + 1]``. boxes_cxcywh: ``[L, B, G, Q, 4]``, 0 to 1.
    """

    logits: Tensor
    boxes_cxcywh: Tensor


class EdgeOutputs(NamedTuple):
    """Distributions over offsets of boxes' edges, of decoders that refine these (D-FINE). N bins.

    logits: ``[L, B, Q, 4, N]``, of left, top, right and bottom. starts: boxes that they move, cxcywh
    ``[B, Q, 4]``, detached. offsets: of the bins ``[N]``, in sides of the box over ``scale`` ``[1]``.
    """

    logits: Tensor
    starts: Tensor
    offsets: Tensor
    scale: Tensor


class DenoisedOutputs(NamedTuple):
    """Outputs of queries that were made from noised objects; in training only. K queries.

    logits: ``[L, B, K, S + 1]``. boxes_cxcywh: ``[L, B, K, 4]``, 0 to 1. objects: int64 ``[B, K]``, the place in
    the packed ground truth of the object to give back; NO_OBJECT where nothing is to be found, NO_QUERY where an
    image has fewer objects than another. copies: how often each object was noised. edges: where there are any.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    objects: Tensor
    copies: int
    edges: EdgeOutputs | None = None


NO_OBJECT, NO_QUERY = -1, -2


class QueryMasks(Protocol):
    """Masks of the last layer's queries, computed for those that are asked for: of most, nobody wants to know.

    regions: Where the maps ``[h, w]`` lie, int64 ``[3, B, 2]`` (height, width): the cells of each image's map that
    count, the pixels of the padded images that these cells cover, and the pixels of the image without padding.
    rests: True in training where nothing is to be learnt of masks.
    """

    rests: bool

    @property
    def regions(self) -> Tensor:
        """Sizes of each image's map in cells and in pixels, and of the image."""

    def __call__(self, images: Tensor, queries: Tensor) -> Tensor:
        """Return mask logits ``[M, h, w]`` of M queries, given by image and number, int64 ``[M]`` each."""

    def all(self) -> Tensor:
        """Return the mask logits of all queries, ``[B, Q, h, w]``."""

    def parts(self) -> tuple[Tensor, ...]:
        """Return what an exported graph of masks is given: see :class:`detrkit.families.family.Family`.

        Cells of each map that are no padding, int64 ``[B, maps, 2]``, queries ``[B, Q, D]``, then the maps
        ``[B, C, h, w]`` one by one.
        """


class Outputs(NamedTuple):
    """Outputs of a detector's forward, stacked over decoder layers (last = final).

    logits: ``[L, B, Q, S + 1]``, the last column is no-object. boxes_cxcywh: ``[L, B, Q, 4]``, 0 to 1.
    masks: None where the model has none.
    dense, groups, denoised: of training aids, in training only. proposes: the first layer is that of tokens which
    became queries (two-stage, in training only). edges: of the last layers, where a decoder has them.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    dense: DenseOutputs | None = None
    groups: GroupOutputs | None = None
    denoised: DenoisedOutputs | None = None
    proposes: bool = False
    edges: EdgeOutputs | None = None
    masks: QueryMasks | None = None


Objects = tuple[Tensor, Tensor, tuple[int, ...]]
"""Objects of a batch for a model that trains with noised ones: logit columns, boxes and counts."""
