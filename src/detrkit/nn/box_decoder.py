"""A decoder whose queries are boxes, refined from layer to layer (arXiv:2010.04159, A.4; arXiv:2304.08069).

Shapes: B images, M image tokens, Q queries, D features, L layers, C logits of a query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detrkit.nn.attention import Attention, QueryMask
from detrkit.nn.deformable import DeformableAttention
from detrkit.nn.mlp import MLP
from detrkit.nn.recompute import Recomputing, run_part
from detrkit.nn.transformer import ResidualLayer
from detrkit.types import EdgeOutputs

FARTHEST = math.log(1e5 - 1)
"""Boxes before the sigmoid go no further: sides and places of a hundred-thousandth of the image."""

# What half precision holds, in which D-FINE's authors run their decoder.
_MOST = 65504.0


class Memory(NamedTuple):
    """The image tokens that queries look at. tokens: ``[B, M, D]``. shapes_hw: of each level.

    padding_mask: bool ``[B, M]``, True = padding, or None. shares: of :func:`detrkit.nn.deformable.valid_shares`.
    """

    tokens: Tensor
    shapes_hw: Sequence[tuple[int, int]]
    padding_mask: Tensor | None
    shares: Tensor | None


class Decoded(NamedTuple):
    """What a decoder of boxes gives.

    logits: ``[L, B, Q, C]``. boxes_cxcywh: ``[L, B, Q, 4]``, 0 to 1. Both float32; L is 1 where only the last
    layer's are wanted. queries: What the last layer leaves, ``[B, Q, D]``. edges: Of decoders that have them.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    queries: Tensor
    edges: EdgeOutputs | None = None


class Gate(nn.Module):
    """A mixture of what a query was and what it saw, weighed by both (arXiv:2410.13842, appendix A.1)."""

    def __init__(self, dim: int):
        super().__init__()
        self.gate = nn.Linear(2 * dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, before: Tensor, seen: Tensor) -> Tensor:
        """Mix two ``[B, Q, D]``."""
        first, second = self.gate(torch.cat((before, seen), dim=-1)).sigmoid().chunk(2, dim=-1)
        return self.norm(first * before + second * seen)  # type: ignore[no-any-return]


class BoxDecoderLayer(ResidualLayer):
    """Self-attention of queries, deformable attention around their boxes, feed-forward; norms after each.

    Args:
        dim: Features D.
        num_heads: Attention heads.
        ffn_dim: Features inside the feed-forward network.
        dropout: On attention weights and branches.
        num_levels: Feature maps.
        num_points: Points a head and level, or of every level.
        discrete: Read the nearest cell at each point.
        gated: As D-FINE has it: attention projects nothing, and a gate weighs what it saw.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        num_levels: int,
        num_points: int | Sequence[int] = 4,
        *,
        discrete: bool = False,
        gated: bool = False,
    ):
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout)
        self.cross_attn = DeformableAttention(
            dim, num_heads, num_levels, num_points, discrete=discrete, project=not gated
        )
        self.gateway = Gate(dim) if gated else None
        self._make_feed_forward(dim, ffn_dim, dropout, norms=2 if gated else 3)

    def forward(
        self, queries: Tensor, positions: Tensor, references: Tensor, memory: Memory, query_mask: QueryMask
    ) -> Tensor:
        """Refine once: ``[B, Q, D]`` to ``[B, Q, D]``, with positions ``[B, Q, D]`` and boxes ``[B, Q, 4]``."""
        queries = self.norm1(queries + self._attend_self(queries, positions, query_mask))
        looked = self.dropout(self.cross_attn(queries + positions, references, *memory))
        if self.gateway is not None:
            queries = self.gateway(queries, looked)
            return self.norm2((queries + self._feed(queries)).clamp(-_MOST, _MOST))  # type: ignore[no-any-return]
        queries = self.norm2(queries + looked)
        return self.norm3(queries + self._feed(queries))  # type: ignore[no-any-return]


class BoxDecoder(Recomputing):
    """A stack of layers; after each, a class and a box, which is where the next one looks.

    Args:
        layers: Their number is L.
        dim: Features D.
        num_logits: Rows of a class head.
        look_twice: A layer's loss also teaches the box that it began with (DINO, arXiv:2203.03605, section 3.5).
        eval_layers: Layers that detect, the others being there to train these; None = all.
        columns: Outputs of a box head.

    Attributes:
        final_only: Return the last layer's output only.
    """

    def __init__(
        self,
        layers: list[BoxDecoderLayer],
        dim: int,
        num_logits: int,
        *,
        look_twice: bool = False,
        eval_layers: int | None = None,
        columns: int = 4,
    ):
        super().__init__()
        self.final_only = False
        self.look_twice = look_twice
        self.eval_layers = eval_layers
        self.layers = nn.ModuleList(layers)
        self.query_pos = MLP(4, 2 * dim, dim, num_layers=2)
        self.class_embed = nn.ModuleList(nn.Linear(dim, num_logits) for _ in layers)
        self.bbox_embed = nn.ModuleList(MLP(dim, dim, columns, num_layers=3) for _ in layers)

    def forward(
        self, queries: Tensor, references: Tensor, memory: Memory, query_mask: QueryMask = None
    ) -> Decoded:
        """Refine.

        Args:
            queries: What queries start as, ``[B, Q, D]``.
            references: Their boxes before the sigmoid, cxcywh ``[B, Q, 4]`` float32.
            memory: The image.
            query_mask: Which queries may look at which; as :data:`detrkit.nn.attention.QueryMask`.
        """
        logits, boxes = [], []
        parts = list(zip(self.layers, self.class_embed, self.bbox_embed, strict=True))
        parts = parts if self.training else parts[: self.eval_layers]
        carried = references
        for number, (layer, class_head, box_head) in enumerate(parts, start=1):
            places = references.sigmoid()
            positions = self.query_pos(places).to(queries.dtype)
            queries = run_part(self, layer, layer, queries, positions, places, memory, query_mask)
            change = box_head(queries).float()
            if number == len(parts) or not self.final_only:
                logits.append(class_head(queries).float())
                boxes.append((change + carried.clamp(-FARTHEST, FARTHEST)).sigmoid())
            refined = change + references.clamp(-FARTHEST, FARTHEST)
            references = refined.detach()
            carried = refined if self.look_twice else references
        return Decoded(torch.stack(logits), torch.stack(boxes), queries)
