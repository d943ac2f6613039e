"""D-FINE's decoder (arXiv:2410.13842): boxes refined as distributions over offsets of their edges.

A first box comes of a plain head. From then on each layer adds to four distributions over bins, whose mean offsets
move that box's edges; the offsets of the bins are finer near zero (equation 3).

Shapes: B images, Q queries, D features, L layers, N bins, C logits of a query.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detrkit.nn.attention import QueryMask
from detrkit.nn.box_decoder import FARTHEST, BoxDecoder, BoxDecoderLayer, Decoded, Memory
from detrkit.nn.mlp import MLP
from detrkit.nn.recompute import run_part
from detrkit.ops.boxes import xyxy_to_cxcywh
from detrkit.types import EdgeOutputs

BINS = 33
"""Bins N of an edge."""
_BEST_BINS = 4
_QUALITY_FEATURES = 64


def bin_offsets(up: Tensor, scale: Tensor) -> Tensor:
    """Return the offset of each bin ``[N]``, in the box's sides over ``scale`` (equation 3)."""
    bound = (up * scale).abs()
    exponents = torch.arange(1, BINS // 2, device=up.device)
    right = (bound + 1) ** (2 * exponents / (BINS - 3)) - 1
    return torch.cat((-2 * bound, -right.flip(0), torch.zeros_like(bound), right, 2 * bound))


def move_edges(boxes_cxcywh: Tensor, offsets: Tensor, scale: Tensor) -> Tensor:
    """Move the left, top, right and bottom edges of boxes by offsets ``[..., 4]``; returns cxcywh (equation 2)."""
    center, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    reach = (0.5 * scale.abs() + offsets) * torch.cat((size, size), dim=-1) / scale.abs()
    return xyxy_to_cxcywh(torch.cat((center - reach[..., :2], center + reach[..., 2:]), dim=-1))


class QualityHead(nn.Module):
    """Adds to class logits what the sharpness of the edges tells of the box (appendix A.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.reg_conf = MLP(4 * (_BEST_BINS + 1), _QUALITY_FEATURES, 1, num_layers=2)
        last = self.reg_conf.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, logits: Tensor, shares: Tensor) -> Tensor:
        """Correct ``[B, Q, C]`` by the edges' distributions ``[B, Q, 4, N]``."""
        best = shares.topk(_BEST_BINS, dim=-1).values
        facts = torch.cat((best, best.mean(-1, keepdim=True)), dim=-1).flatten(2)
        return logits + self.reg_conf(facts).float()  # type: ignore[no-any-return]


class DistributionDecoder(BoxDecoder):
    """A stack of layers; after each, a class and four distributions that move the first box's edges.

    Args:
        layers: Their number is L.
        dim: Features D.
        num_logits: Rows C of a class head.
        scale: Flatness of the offsets of bins, ``reg_scale`` of the authors.
        eval_layers: Layers that detect, the others being there to train these; None = all.

    Attributes:
        final_only: Return the last layer's output only.
    """

    def __init__(
        self, layers: list[BoxDecoderLayer], dim: int, num_logits: int, *, scale: float, eval_layers: int | None
    ):
        super().__init__(layers, dim, num_logits, eval_layers=eval_layers, columns=4 * BINS)
        self.quality = nn.ModuleList(QualityHead() for _ in layers)
        self.first_bbox_embed = MLP(dim, dim, 4, num_layers=3)
        self.register_buffer("up", torch.tensor([0.5]))
        self.register_buffer("scale", torch.tensor([scale]))
        self.up: Tensor
        self.scale: Tensor

    def forward(
        self, queries: Tensor, references: Tensor, memory: Memory, query_mask: QueryMask = None
    ) -> Decoded:
        """Refine; as :meth:`detrkit.nn.box_decoder.BoxDecoder.forward`.

        In training the first box and its logits come first, as a layer more, and boxes are clamped to 0 to 1.
        """
        logits, boxes, edges = [], [], []
        offsets = bin_offsets(self.up, self.scale)
        parts = list(zip(self.layers, self.class_embed, self.bbox_embed, self.quality, strict=True))
        parts = parts if self.training else parts[: self.eval_layers]
        places, start, sums = references.sigmoid(), references, torch.zeros((), device=queries.device)
        before: Tensor | float = 0.0
        for number, (layer, class_head, edge_head, quality) in enumerate(parts, start=1):
            positions = self.query_pos(places).clamp(-10, 10).to(queries.dtype)
            queries = run_part(self, layer, layer, queries, positions, places, memory, query_mask)
            if number == 1:
                change = self.first_bbox_embed(queries).float()
                first = (change + references.clamp(-FARTHEST, FARTHEST)).sigmoid()
                start = first.detach()
            sums = edge_head(queries + before).float().unflatten(-1, (4, BINS)) + sums
            shares = sums.softmax(-1)
            found = move_edges(start, shares @ offsets, self.scale)
            if number == len(parts) or not self.final_only:
                plain = class_head(queries).float()
                if self.training and number == 1:
                    logits.append(plain)
                    boxes.append(first)
                logits.append(quality(plain, shares))
                boxes.append(found)
                edges.append(sums)
            places, before = found.detach(), queries.detach()
        all_boxes = torch.stack(boxes)
        distributions = EdgeOutputs(torch.stack(edges), start, offsets, self.scale)
        all_boxes = all_boxes.clamp(0, 1) if self.training else all_boxes
        return Decoded(torch.stack(logits), all_boxes, queries, distributions)
