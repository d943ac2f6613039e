"""Supervision of every image token of the encoder: one object, many tokens (as in arXiv:1904.01355).

A training aid. A set loss teaches through a handful of matched queries an image; reading the encoder's tokens
with the same heads gives it hundreds, so that the tokens soon hold class and box and the decoder only has to
choose. The model that detects is unchanged.

Every object weighs 1, however many tokens it has, and what is no object weighs as much as unmatched queries
would. The normalisers are then those of the queries, known from counts alone, and micro-batches add up exactly.

Shapes: B images, M tokens, N objects of the batch, O the most objects of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from detrkit.config import LossConfig
from detrkit.ops.boxes import broadcast_giou, cxcywh_to_xyxy
from detrkit.types import DenseOutputs, GroundTruth

# A token belongs to an object if it lies within this share of the box's size from its centre.
_CENTER_SHARE = 0.25


def dense_terms(
    dense: DenseOutputs, truth: GroundTruth, slots: Tensor, config: LossConfig, num_queries: int
) -> dict[str, Tensor]:
    """Class, L1 and GIoU loss of the tokens, summed; to be divided as the queries' terms are.

    Args:
        dense: The heads' word on every token.
        truth: The batch's objects.
        slots: int64 ``[N]``, the logit column of each object's class.
        config: The weight of no-object.
        num_queries: Queries of the model; so many predictions an image the tokens stand for.

    Returns:
        Scalars by the names of the queries' terms.
    """
    objects = assign_tokens(dense, truth)
    positive = objects >= 0
    share = _object_shares(objects, len(slots))
    no_object = dense.logits.shape[-1] - 1
    negative = dense.valid & ~positive
    found = torch.tensor([min(count, num_queries) for count in truth.counts], dtype=torch.float32)
    unmatched = (num_queries - found).to(share.device, non_blocking=True)[:, None]
    weights = share + config.no_object_weight * unmatched * negative / negative.sum(1, keepdim=True).clamp(min=1)
    if len(slots) == 0:
        target_slots = torch.full_like(objects, no_object)
        wanted = torch.zeros_like(dense.boxes_cxcywh)
    else:
        target_slots = torch.where(positive, slots[objects.clamp(min=0)], no_object)
        wanted = truth.boxes_cxcywh[objects.clamp(min=0)]
    losses = functional.cross_entropy(dense.logits.flatten(0, 1), target_slots.flatten(), reduction="none")
    giou = broadcast_giou(cxcywh_to_xyxy(dense.boxes_cxcywh), cxcywh_to_xyxy(wanted))
    return {
        "class": (losses * weights.flatten()).sum(),
        "l1": ((dense.boxes_cxcywh - wanted).abs().sum(-1) * share).sum(),
        "giou": ((1 - giou) * share).sum(),
    }


@torch.no_grad()
def assign_tokens(dense: DenseOutputs, truth: GroundTruth) -> Tensor:
    """The object each token is to find, int64 ``[B, M]``; -1 for none.

    Tokens near an object's centre and always the nearest one belong to it; between several objects the smallest
    wins. Nothing here asks the device for a value.
    """
    images, tokens = dense.logits.shape[:2]
    device = dense.logits.device
    most = max(truth.counts, default=0)
    if most == 0:
        return torch.full((images, tokens), -1, dtype=torch.int64, device=device)
    rows = [(image, place) for image, count in enumerate(truth.counts) for place in range(count)]
    image_of, place_of = torch.tensor(rows).to(device, non_blocking=True).unbind(1)
    boxes = torch.full((images, most, 4), 9.0, device=device)
    boxes[image_of, place_of] = truth.boxes_cxcywh
    number = torch.full((images, most), -1, dtype=torch.int64, device=device)
    number[image_of, place_of] = torch.arange(len(rows), device=device)
    real = (number >= 0)[:, None]

    distance = (dense.points[:, :, None] - boxes[:, None, :, :2]).abs()  # [B, M, O, 2]
    inside = (distance <= _CENTER_SHARE * boxes[:, None, :, 2:]).all(-1)
    squared = distance.square().sum(-1).masked_fill(~dense.valid[..., None], torch.inf)
    inside = inside.scatter(1, squared.argmin(1, keepdim=True), True)
    inside = inside & real & dense.valid[..., None]
    area = (boxes[..., 2] * boxes[..., 3])[:, None].expand(-1, tokens, -1).masked_fill(~inside, torch.inf)
    smallest, place = area.min(-1)
    return torch.where(smallest.isinf(), -1, number.gather(1, place))


@torch.no_grad()
def _object_shares(objects: Tensor, count: int) -> Tensor:
    """One over the number of tokens of a token's object, float32 ``[B, M]``; 0 where there is none."""
    flat = objects.flatten() + 1
    tokens = torch.zeros(count + 1, device=objects.device).scatter_add(0, flat, torch.ones_like(flat).float())
    shares = torch.where(flat > 0, 1 / tokens.clamp(min=1)[flat], 0.0)
    return shares.view(objects.shape)
