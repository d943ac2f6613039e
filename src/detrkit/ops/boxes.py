"""Box maths in float32 that torchvision does not have in batched form.

Boxes are ``[..., 4]``; leading dimensions broadcast. Formats: cxcywh (centre, size) and xyxy (corners).
"""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Return the corners of boxes given by centre and size; same shape, unit and dtype."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((center - size / 2, center + size / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Return centre and size of boxes given by corners; same shape, unit and dtype."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def broadcast_giou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Return the generalised IoU of boxes that broadcast against each other (arXiv:1902.09630, algorithm 1).

    Degenerate boxes are legal: a union or hull without area gives 0 for its quotient instead of NaN, where
    torchvision divides by zero.

    Args:
        boxes1_xyxy: ``[..., 4]``, any unit.
        boxes2_xyxy: ``[..., 4]``, the same unit.

    Returns:
        Values in -1 to 1 of the broadcast shape without the last dimension, float32.
    """
    first, second = boxes1_xyxy.float(), boxes2_xyxy.float()
    overlap = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    intersection = _area(overlap.clamp(min=0))
    hull_area = _area(hull.clamp(min=0))
    area1 = _area(first[..., 2:] - first[..., :2])
    area2 = _area(second[..., 2:] - second[..., :2])
    union = area1 + area2 - intersection
    tiny = torch.finfo(torch.float32).tiny
    return intersection / union.clamp(min=tiny) - (hull_area - union) / hull_area.clamp(min=tiny)


def broadcast_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Return the IoU of boxes that broadcast against each other, 0 without area; see :func:`broadcast_giou`."""
    first, second = boxes1_xyxy.float(), boxes2_xyxy.float()
    overlap = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    intersection = _area(overlap.clamp(min=0))
    areas = _area(first[..., 2:] - first[..., :2]) + _area(second[..., 2:] - second[..., :2])
    return intersection / (areas - intersection).clamp(min=torch.finfo(torch.float32).tiny)


def _area(sides: Tensor) -> Tensor:
    """Multiply width and height ``[..., 2]``; the backward of ``prod`` would ask the device for zeros."""
    return sides[..., 0] * sides[..., 1]
