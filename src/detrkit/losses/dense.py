"""Supervision of every image token of the encoder: one object, many tokens (as in arXiv:1904.01355).

A training aid. A set loss teaches through a handful of matched queries an image; reading the encoder's tokens with
the same heads gives it hundreds, so that the tokens soon hold class and box and the decoder only has to choose. The
model that detects is unchanged.

Shapes: B images, M tokens, N objects of the batch, O the most objects of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from detrkit.config import LossConfig
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.types import DenseOutputs, GroundTruth

# A token belongs to an object if it lies within this share of the box's size from its centre.
_CENTER_SHARE = 0.25


def dense_loss(dense: DenseOutputs, truth: GroundTruth, slots: Tensor, config: LossConfig, share: float) -> Tensor:
    """Weighted class, L1 and GIoU loss of the tokens, a scalar.

    Normalised within the micro-batch, and weighted by ``share`` so that micro-batches add up.

    Args:
        dense: The heads' word on every token.
        truth: The batch's objects.
        slots: int64 ``[N]``, the logit column of each object's class.
        config: The same weights as the queries have.
        share: This batch's part of the effective batch, 0 to 1.
    """
    objects = assign_tokens(dense, truth)
    positive = objects >= 0
    no_object = dense.logits.shape[-1] - 1
    target_slots = torch.where(positive, slots[objects.clamp(min=0)] if len(slots) else no_object, no_object)
    weights = torch.where(positive, 1.0, config.no_object_weight) * dense.valid
    losses = functional.cross_entropy(dense.logits.flatten(0, 1), target_slots.flatten(), reduction="none")
    class_part = (losses * weights.flatten()).sum() / weights.sum().clamp(min=1e-6)
    chosen = truth.boxes_cxcywh[objects.clamp(min=0)] if len(slots) else dense.boxes_cxcywh.detach()
    count = positive.sum().clamp(min=1)
    mask = positive.flatten().float()
    predicted, wanted = dense.boxes_cxcywh.flatten(0, 1), chosen.flatten(0, 1)
    l1_part = ((predicted - wanted).abs().sum(-1) * mask).sum() / count
    giou = generalized_box_iou_loss(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))
    giou_part = (giou * mask).sum() / count
    total = config.class_weight * class_part + config.l1_weight * l1_part + config.giou_weight * giou_part
    return share * total


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

    distance = (dense.points[:, :, None] - boxes[:, None, :, :2]).abs()  # [B, M, O, 2]
    inside = (distance <= _CENTER_SHARE * boxes[:, None, :, 2:]).all(-1) & (number >= 0)[:, None]
    squared = distance.square().sum(-1).masked_fill(~dense.valid[..., None], torch.inf)
    nearest = functional.one_hot(squared.argmin(1), tokens).bool().transpose(1, 2)
    inside = (inside | (nearest & (number >= 0)[:, None])) & dense.valid[..., None]
    area = (boxes[..., 2] * boxes[..., 3])[:, None].expand(-1, tokens, -1).masked_fill(~inside, torch.inf)
    smallest, place = area.min(-1)
    return torch.where(smallest.isinf(), -1, number.gather(1, place))
