"""Supervision of every image token of the encoder: one object, many tokens.

A training aid. A set loss teaches through a handful of matched queries an image; reading the encoder's tokens
with the same heads gives it hundreds, so that the tokens soon hold class and box and the decoder only has to
choose. The model that detects is unchanged.

Every object weighs 1, however many tokens it has, and what is no object weighs as much as unmatched queries
would. The normalisers are then those of the queries, known from counts alone, and micro-batches add up exactly.

Shapes: B images, M tokens, N objects of the batch, O the most objects of an image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detrkit.config import LossConfig
from detrkit.losses.scoring import SOFTMAX, ClassScoring
from detrkit.ops.boxes import broadcast_giou, broadcast_iou, cxcywh_to_xyxy
from detrkit.types import DenseOutputs, GroundTruth

# A token belongs to an object if it lies within this share of the box's size from its centre.
_CENTER_SHARE = 0.25
# The tokens that fit an object best, by score^1 * IoU^6 (TOOD's exponents), are its own; at most so many.
_BEST_TOKENS = 10
_SCORE_POWER, _IOU_POWER = 1.0, 6.0


def dense_terms(
    dense: DenseOutputs,
    truth: GroundTruth,
    logit_index: Tensor,
    config: LossConfig,
    num_queries: int,
    assignment: str = "center",
    scoring: ClassScoring = SOFTMAX,
) -> dict[str, Tensor]:
    """Compute class, L1 and GIoU loss of the tokens, summed; to be divided as the queries' terms are.

    Args:
        dense: The heads' word on every token.
        truth: The batch's objects.
        logit_index: int64 ``[N]``, the logit column of each object's class.
        config: The weight of no-object, and what a class should score.
        num_queries: Queries of the model; so many predictions an image the tokens stand for.
        assignment: ``center`` or ``aligned``, as in :class:`detrkit.config.AidsConfig`.
        scoring: What the logits mean.

    Returns:
        Scalars by the names of the queries' terms.
    """
    objects = (
        assign_tokens(dense, truth) if assignment == "center" else align_tokens(dense, truth, logit_index, scoring)
    )
    positive = objects >= 0
    share = _object_shares(objects, len(logit_index))
    no_object = dense.logits.shape[-1] - scoring.extra_columns
    negative = dense.valid & ~positive
    found = torch.tensor([min(count, num_queries) for count in truth.counts], dtype=torch.float32)
    unmatched = (num_queries - found).to(share.device, non_blocking=True)[:, None]
    no_object_weight = scoring.no_object_weight(config.no_object_weight)
    weights = share + no_object_weight * unmatched * negative / negative.sum(1, keepdim=True).clamp(min=1)
    if len(logit_index) == 0:
        target_index = torch.full_like(objects, no_object)
        wanted = torch.zeros_like(dense.boxes_cxcywh)
    else:
        target_index = torch.where(positive, logit_index[objects.clamp(min=0)], no_object)
        wanted = truth.boxes_cxcywh[objects.clamp(min=0)]
    corners, wanted_corners = cxcywh_to_xyxy(dense.boxes_cxcywh), cxcywh_to_xyxy(wanted)
    scores = None
    if config.class_targets != "hard":
        scores = torch.where(positive, broadcast_iou(corners.detach(), wanted_corners), 1.0)
    losses = scoring.losses(dense.logits, target_index, scores)
    giou = broadcast_giou(corners, wanted_corners)
    return {
        "class": (losses * weights).sum(),
        "l1": ((dense.boxes_cxcywh - wanted).abs().sum(-1) * share).sum(),
        "giou": ((1 - giou) * share).sum(),
    }


class _Padded(NamedTuple):
    """The objects image by image. number: int64 ``[B, O]``, -1 = none; boxes: ``[B, O, 4]``."""

    number: Tensor
    boxes: Tensor


@torch.no_grad()
def assign_tokens(dense: DenseOutputs, truth: GroundTruth) -> Tensor:
    """Return the object each token is to find, int64 ``[B, M]``; -1 for none (FCOS, arXiv:1904.01355).

    Tokens near an object's centre and always the nearest one belong to it; between several objects the smallest
    wins. Nothing here asks the device for a value.
    """
    padded = _pad_objects(dense, truth)
    if padded is None:
        return _nothing(dense)
    number, boxes = padded
    distance = (dense.points[:, :, None] - boxes[:, None, :, :2]).abs()  # [B, M, O, 2]
    inside = (distance <= _CENTER_SHARE * boxes[:, None, :, 2:]).all(-1)
    squared = distance.square().sum(-1).masked_fill(~dense.valid[..., None], torch.inf)
    inside = inside.scatter(1, squared.argmin(1, keepdim=True), True)
    inside = inside & (number >= 0)[:, None] & dense.valid[..., None]
    area = boxes[:, None, :, 2] * boxes[:, None, :, 3]
    smallest, place = torch.where(inside, area, torch.inf).min(-1)
    return torch.where(smallest.isinf(), -1, number.gather(1, place))


@torch.no_grad()
def align_tokens(
    dense: DenseOutputs, truth: GroundTruth, logit_index: Tensor, scoring: ClassScoring = SOFTMAX
) -> Tensor:
    """Return the object each token is to find, int64 ``[B, M]``; -1 for none (TOOD, arXiv:2108.07755).

    Of the tokens inside an object's box, or failing those the one nearest its centre, the ten belong to it that
    score its class and overlap it best at present; between several objects the best overlap wins.
    """
    padded = _pad_objects(dense, truth)
    if padded is None:
        return _nothing(dense)
    number, boxes = padded
    real = (number >= 0)[:, None] & dense.valid[..., None]  # [B, M, O]
    distance = (dense.points[:, :, None] - boxes[:, None, :, :2]).abs()
    inside = (distance <= 0.5 * boxes[:, None, :, 2:]).all(-1)
    squared = distance.square().sum(-1).masked_fill(~dense.valid[..., None], torch.inf)
    inside = inside.scatter(1, squared.argmin(1, keepdim=True), True) & real
    columns = logit_index[number.clamp(min=0)][:, None].expand(-1, dense.logits.shape[1], -1)
    score = scoring.scores(dense.logits).gather(2, columns)
    iou = broadcast_iou(cxcywh_to_xyxy(dense.boxes_cxcywh)[:, :, None], cxcywh_to_xyxy(boxes)[:, None])
    fit = torch.where(inside, score**_SCORE_POWER * iou**_IOU_POWER + 1e-9, 0.0)
    # where nothing overlaps yet, nearness to the centre decides
    size = boxes[:, None, :, 2:].square().sum(-1).clamp(min=1e-12)  # a box may be a point
    fit = fit + torch.where(inside, 1e-10 / (1.0 + squared / size), 0.0)
    best = fit.topk(min(_BEST_TOKENS, fit.shape[1]), dim=1)
    chosen = torch.zeros_like(inside).scatter(1, best.indices, best.values > 0)
    overlap, place = torch.where(chosen, iou + 1e-6, -1.0).max(-1)
    return torch.where(overlap < 0, -1, number.gather(1, place))


def _nothing(dense: DenseOutputs) -> Tensor:
    return torch.full(dense.logits.shape[:2], -1, dtype=torch.int64, device=dense.logits.device)


def _pad_objects(dense: DenseOutputs, truth: GroundTruth) -> _Padded | None:
    """Pad the objects of each image to one length; None where there is none at all."""
    images, device = dense.logits.shape[0], dense.logits.device
    most = max(truth.counts, default=0)
    if most == 0:
        return None
    rows = [(image, place) for image, count in enumerate(truth.counts) for place in range(count)]
    image_of, place_of = torch.tensor(rows).to(device, non_blocking=True).unbind(1)
    boxes = torch.full((images, most, 4), 9.0, device=device)
    boxes[image_of, place_of] = truth.boxes_cxcywh
    number = torch.full((images, most), -1, dtype=torch.int64, device=device)
    number[image_of, place_of] = torch.arange(len(rows), device=device)
    return _Padded(number, boxes)


@torch.no_grad()
def _object_shares(objects: Tensor, count: int) -> Tensor:
    """Return one over the number of tokens of a token's object, float32 ``[B, M]``; 0 where there is none."""
    flat = objects.flatten() + 1
    tokens = torch.zeros(count + 1, device=objects.device).scatter_add(0, flat, torch.ones_like(flat).float())
    shares = torch.where(flat > 0, 1 / tokens.clamp(min=1)[flat], 0.0)
    return shares.view(objects.shape)
