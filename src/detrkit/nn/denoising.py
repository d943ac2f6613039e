"""Queries made from noised objects, a training aid (DN-DETR, arXiv:2203.01305; DINO, arXiv:2203.03605).

Such a query is told an object's place and class, both falsified a little, and has to give the object back: the
decoder learns to refine boxes without waiting for a stable matching. Beside each lies one that was moved further
and has to find nothing, so that the decoder learns which of two near queries to keep.

Shapes: B images, N objects of the batch, K queries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detrkit.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detrkit.types import NO_OBJECT, NO_QUERY, Objects

# Of an image with more objects, the first so many are noised.
_MOST_OBJECTS = 100
_SMALLEST_SIDE = 1e-3


class NoisedObjects(NamedTuple):
    """The noised objects that queries are made from.

    logit_index: int64 ``[B, K]``, a logit column. boxes_cxcywh: ``[B, K, 4]``, 0 to 1. objects: int64 ``[B, K]``,
    as in :class:`detrkit.types.DenoisedOutputs`. blocks: int64 ``[K]``, the copy that each query is of. copies:
    their number.
    """

    logit_index: Tensor
    boxes_cxcywh: Tensor
    objects: Tensor
    blocks: Tensor
    copies: int


@torch.no_grad()
def noise_objects(
    objects: Objects, copies: int, num_labels: int, *, label_noise: float, box_noise: float
) -> NoisedObjects:
    """Draw noised objects, from torch's random numbers of the boxes' device.

    Args:
        objects: Of the batch.
        copies: Times that each object is noised.
        num_labels: Labels of the head.
        label_noise: Share of the copies that are told a random class.
        box_noise: Most that a corner moves, in halves of the box's side; those that shall find nothing move by
            once to twice as much.

    Returns:
        ``K = copies * 2 * most`` queries, ``most`` being the objects of the image that has most.
    """
    logit_index, boxes, counts = objects
    device = boxes.device
    kept = [min(count, _MOST_OBJECTS) for count in counts]
    most = max(kept, default=0)
    number = torch.full((len(counts), most), NO_QUERY, dtype=torch.int64)
    start = 0
    for image, count in enumerate(counts):
        number[image, : kept[image]] = torch.arange(start, start + kept[image])
        start += count
    number = number.to(device, non_blocking=True)[:, None, None].expand(-1, copies, 2, -1)  # [B, copies, 2, most]
    if len(boxes) == 0:  # most is 0 then
        boxes, logit_index = boxes.new_zeros(1, 4), logit_index.new_zeros(1)
    known = cxcywh_to_xyxy(boxes)[number.clamp(min=0)]
    shape = known.shape[:-1]
    sides = (known[..., 2:] - known[..., :2]).repeat(1, 1, 1, 1, 2)  # w, h, w, h
    far = torch.tensor([0.0, 1.0], device=device).view(1, 1, 2, 1, 1)
    sign = 2.0 * torch.randint(0, 2, (*shape, 4), device=device) - 1.0
    moved = (torch.rand(*shape, 4, device=device) + far) * sign
    corners = (known + 0.5 * box_noise * sides * moved).clamp(0, 1)
    low, high = (
        torch.minimum(corners[..., :2], corners[..., 2:]),
        torch.maximum(corners[..., :2], corners[..., 2:]),
    )
    noised = xyxy_to_cxcywh(torch.cat((low, high), dim=-1))
    noised = torch.cat((noised[..., :2], noised[..., 2:].clamp(min=_SMALLEST_SIDE)), dim=-1)
    told = logit_index[number.clamp(min=0)]
    wrong = torch.rand(shape, device=device) < label_noise
    told = torch.where(wrong, torch.randint(0, max(num_labels, 1), shape, device=device), told)
    finds_nothing = (far[..., 0] > 0) & (number != NO_QUERY)
    wanted = torch.where(finds_nothing, NO_OBJECT, number)
    blocks = torch.arange(copies, device=device).repeat_interleave(2 * most)
    return NoisedObjects(told.flatten(1), noised.flatten(1, 3), wanted.flatten(1), blocks, copies)


def block_mask(blocks: Tensor, exists: Tensor | None = None, common: int | None = None) -> Tensor:
    """Return which queries may look at which: those of their own block that exist, and always themselves.

    Args:
        blocks: int64 ``[K]``, the block of each query.
        exists: bool ``[B, K]``; None = all.
        common: Block that all others may look at too; None = none.

    Returns:
        bool ``[1 or B, 1, K, K]``, True = may look at.
    """
    same = (blocks[:, None] == blocks[None, :])[None, None]
    if common is not None:
        same = same | (blocks == common)[None, None, None]
    if exists is None:
        return same
    itself = torch.eye(len(blocks), dtype=torch.bool, device=blocks.device)
    return same & exists[:, None, None, :] | itself
