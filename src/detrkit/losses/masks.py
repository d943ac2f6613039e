"""Losses of the masks of matched queries: focal and Dice (arXiv:2005.12872, section 4.4 and A.2).

Shapes: M matched queries, H x W pixels of the padded images, h x w cells of the mask maps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchvision.ops import sigmoid_focal_loss

from detrkit.masks import stretch_weights
from detrkit.types import QueryMasks

# Pixels of masks at once; more are computed again in the backward pass, so that memory does not grow with objects.
_PIXELS_AT_ONCE = 2**23
# The logit of what is no part of an image: no loss and no gradient.
_NEVER = -1e4


def mask_terms(
    masks: QueryMasks, images: Tensor, queries: Tensor, objects: Tensor, targets: Tensor | None
) -> dict[str, Tensor]:
    """Return focal and Dice loss of matched queries, summed; to be divided by the number of objects.

    Args:
        masks: Of the last layer's queries.
        images: Image of each pair, int64 ``[M]``.
        queries: Query of each pair, int64 ``[M]``.
        objects: Object of each pair, a row of ``targets``, int64 ``[M]``.
        targets: Masks of all objects, bool ``[N, H, W]``; may be None where there are no pairs.
    """
    if len(images) == 0:  # zero, but of the mask head, whose gradients other processes wait for
        first = torch.zeros(1, dtype=torch.int64, device=images.device)
        nothing = masks(first, first).sum() * 0.0
        return {"mask": nothing, "dice": nothing}
    assert targets is not None
    height, width = targets.shape[-2:]
    at_once = max(1, _PIXELS_AT_ONCE // (height * width))
    cells, pixels = masks.regions[0], masks.regions[1]

    def losses_of(images: Tensor, queries: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
        sizes = (cells[images], pixels[images])
        logits = stretch(masks(images, queries), *sizes, height, width)
        return focal_loss(logits, targets[objects], sizes[1].prod(1)), dice_loss(logits, targets[objects])

    parts = list(zip(*(torch.split(pair, at_once) for pair in (images, queries, objects)), strict=True))
    if len(parts) == 1 or not torch.is_grad_enabled():
        found = [losses_of(*part) for part in parts]
    else:
        found = [checkpoint(losses_of, *part, use_reentrant=False) for part in parts]
    focal, dice = (torch.cat(each).sum() for each in zip(*found, strict=True))
    return {"mask": focal, "dice": dice}


def stretch(logits: Tensor, cells: Tensor, pixels: Tensor, height: int, width: int) -> Tensor:
    """Stretch mask logits ``[M, h, w]`` bilinearly over the padded images, float32 ``[M, H, W]``.

    Outside the pixels that a map covers no mask ever is.

    Args:
        logits: Maps of M queries.
        cells: Cells of each map that count, (height, width), int64 ``[M, 2]``.
        pixels: Pixels of the padded image that these cover, int64 ``[M, 2]``.
        height: H.
        width: W.
    """
    weights, inside = [], []
    for axis, length in enumerate((height, width)):
        positions = torch.arange(length, device=logits.device)
        places = torch.arange(logits.shape[1 + axis], device=logits.device)
        own = pixels[:, axis : axis + 1]
        weights.append(stretch_weights(positions, cells[:, axis : axis + 1].float(), own.float(), places))
        inside.append(positions < own)
    with torch.autocast(logits.device.type, enabled=False):
        stretched: Tensor = weights[0] @ logits.float() @ weights[1].transpose(1, 2)
    return stretched.masked_fill(~(inside[0][:, :, None] & inside[1][:, None]), _NEVER)


def focal_loss(logits: Tensor, targets: Tensor, pixels: Tensor) -> Tensor:
    """Return the focal loss of each mask (arXiv:1708.02002, equation 5), a mean over its pixels, ``[M]``.

    Args:
        logits: ``[M, H, W]``.
        targets: bool ``[M, H, W]``.
        pixels: Pixels of each image, padding not counted, ``[M]``.
    """
    return sigmoid_focal_loss(logits, targets.to(logits.dtype), alpha=0.25, gamma=2).sum(dim=(1, 2)) / pixels


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the Dice loss of each mask (arXiv:1606.04797, with 1 added above and below), ``[M]``."""
    probability = logits.sigmoid()
    shared = (probability * targets).sum(dim=(1, 2))
    both = probability.sum(dim=(1, 2)) + targets.sum(dim=(1, 2))
    return 1 - (2 * shared + 1) / (both + 1)
