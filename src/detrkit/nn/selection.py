"""Queries chosen among the image's own tokens (two-stage: arXiv:2010.04159, A.4; RT-DETR, arXiv:2304.08069).

Shapes: B images, M tokens of all levels one after another, D features, K chosen tokens, C class logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Side of the box that a token of the finest level stands for before it is refined; twice that on the next.
_FIRST_SIDE = 0.05


class Cells(NamedTuple):
    """Where tokens lie. points: centres (x, y), 0 to 1 of the image without padding, ``[B or 1, M, 2]``.

    valid: False on padding, bool ``[B or 1, M]``. anchors: boxes cxcywh, ``[B or 1, M, 4]``.
    """

    points: Tensor
    valid: Tensor
    anchors: Tensor


def locate_cells(
    shapes_hw: Sequence[tuple[int, int]], masks: Sequence[Tensor | None], device: torch.device
) -> Cells:
    """Return centres, validity and anchors of every cell of some feature maps, fine to coarse.

    Args:
        shapes_hw: Height and width of each map.
        masks: bool ``[B, h, w]`` each, True = padding; None = no padding.
        device: Where to put them.
    """
    points, valids, sides = [], [], []
    for level, ((height, width), mask) in enumerate(zip(shapes_hw, masks, strict=True)):
        if mask is None:
            valid = torch.ones(1, height, width, dtype=torch.bool, device=device)
        else:
            valid = ~mask
        rows = (torch.arange(height, device=device) + 0.5) / valid[:, :, :1].sum(1)
        columns = (torch.arange(width, device=device) + 0.5) / valid[:, :1, :].sum(2)
        grid = torch.stack(
            (columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)), dim=-1
        )
        points.append(grid.flatten(1, 2))
        valids.append(valid.flatten(1))
        sides.append(torch.full((height * width, 2), _FIRST_SIDE * 2**level, device=device))
    centers = torch.cat(points, dim=1)
    side = torch.cat(sides)[None].expand(centers.shape[0], -1, -1)
    return Cells(centers, torch.cat(valids, dim=1), torch.cat((centers, side), dim=-1))


@torch.no_grad()
def best_tokens(scores: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose the tokens that most probably hold an object.

    Args:
        scores: Probability of an object, float32 ``[B, M]``.
        valid: bool ``[B or 1, M]``.
        count: How many, K.

    Returns:
        Tokens int64 ``[B, K]``, best first, and bool ``[B, K]``: False at the end where an image has fewer tokens
        than that, padding not counted.
    """
    # as many tokens more, which are none: an export cannot ask how many there are
    scores = functional.pad(scores.masked_fill(~valid, -1.0), (0, count), value=-2.0)
    chosen = scores.topk(count, dim=1).indices
    real = functional.pad(valid.expand(scores.shape[0], -1), (0, count)).gather(1, chosen)
    return torch.where(real, chosen, 0), real


def take_tokens(values: Tensor, chosen: Tensor) -> Tensor:
    """Take rows ``[B, K, C]`` of ``[B, M, C]``."""
    return values.gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))


def hide_missing(logits: Tensor, boxes_cxcywh: Tensor, real: Tensor, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """Make queries that stand for no token find nothing, whatever lies on padding; nothing is learnt from them.

    Args:
        logits: ``[..., B, K, C]``.
        boxes_cxcywh: ``[..., B, K, 4]``.
        real: bool ``[B, K]``, from :func:`best_tokens`.
        nothing: Logits ``[C]`` that find no object.
    """
    return torch.where(real[..., None], logits, nothing), torch.where(real[..., None], boxes_cxcywh, 0.5)
