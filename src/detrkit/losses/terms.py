"""Loss terms: pure functions, each summed per decoder layer and not yet normalised or weighted.

Shapes: L layers, B images, Q queries, M matched pairs of a layer, S + 1 logits. All maths is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from detrkit.ops.boxes import broadcast_giou, cxcywh_to_xyxy


def class_loss(
    logits: Tensor, target_slots: Tensor, no_object_weight: float, scores: Tensor | None = None
) -> Tensor:
    """Cross-entropy over S classes and no-object (paper equation 2), no-object weighted down.

    Args:
        logits: ``[L, B, Q, S + 1]``.
        target_slots: int64 ``[L, B, Q]``, S where no object is matched.
        no_object_weight: Weight of queries without an object; others weigh 1.
        scores: ``[L, B, Q]``, what the class of a matched query should score, the rest being no-object's; 1 if
            not given.

    Returns:
        ``[L]``; divide by the sum of weights.
    """
    losses = soft_cross_entropy(logits, target_slots, scores)
    weights = torch.where(target_slots == logits.shape[-1] - 1, no_object_weight, 1.0)
    return (losses * weights).sum(dim=(1, 2))


def soft_cross_entropy(logits: Tensor, target_slots: Tensor, scores: Tensor | None) -> Tensor:
    """Cross-entropy with ``scores`` of the target column and the rest of the last one, no-object.

    Args:
        logits: ``[..., S + 1]``.
        target_slots: int64 ``[...]``.
        scores: ``[...]``, 0 to 1; None = 1 everywhere.

    Returns:
        ``[...]`` float32.
    """
    losses = functional.cross_entropy(
        logits.float().flatten(0, -2), target_slots.flatten(), reduction="none"
    ).view(target_slots.shape)
    if scores is None:
        return losses
    no_object = -functional.log_softmax(logits.float(), dim=-1)[..., -1]
    return scores * losses + (1 - scores) * no_object


def l1_loss(boxes_cxcywh: Tensor, target_cxcywh: Tensor) -> Tensor:
    """L1 between matched boxes ``[L, M, 4]`` (paper equation 9); ``[L]``, divide by the number of boxes."""
    return (boxes_cxcywh.float() - target_cxcywh).abs().sum(dim=(1, 2))


def giou_loss(boxes_cxcywh: Tensor, target_cxcywh: Tensor) -> Tensor:
    """1 - GIoU of matched boxes ``[L, M, 4]`` (paper equation 10); ``[L]``, divide by the number of boxes.

    torchvision's ``generalized_box_iou_loss`` indexes by a mask, for which the host waits for the device.
    """
    giou = broadcast_giou(cxcywh_to_xyxy(boxes_cxcywh.float()), cxcywh_to_xyxy(target_cxcywh))
    return (1 - giou).sum(dim=1)


@torch.no_grad()
def class_error(logits: Tensor, target_slots: Tensor) -> Tensor:
    """Share of matched queries of the last layer whose best class is wrong, 0 to 1; 0 without objects."""
    matched = target_slots[-1] != logits.shape[-1] - 1
    wrong = (logits[-1, ..., :-1].argmax(-1) != target_slots[-1]) & matched
    return wrong.sum() / matched.sum().clamp(min=1)
