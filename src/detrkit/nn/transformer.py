"""The transformer encoder and decoder of DETR (paper A.3 and figure 10).

Shapes: B images, M image tokens, Q queries, D features, L decoder layers. Masks: True = may attend.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from detrkit.nn.attention import Attention, QueryMask
from detrkit.nn.dropout import relu_dropout
from detrkit.nn.recompute import Recomputing, run_part

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": functools.partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
    "mish": functional.mish,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "tanh": torch.tanh,
}


class ResidualLayer(nn.Module):
    """What encoder and decoder layers have alike: self-attention, a feed-forward network, norms, one dropout.

    The parts are made in the order of the published checkpoints, in which optimisers know them.

    Attributes:
        activation: Inside the feed-forward network: relu, as published, or another that a config names.
    """

    activation = "relu"
    self_attn: Attention
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    norm3: nn.LayerNorm

    def _make_feed_forward(self, dim: int, ffn_dim: int, dropout: float, *, norms: int) -> None:
        """Make everything that comes after the attentions."""
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        for number in range(1, norms + 1):
            self.add_module(f"norm{number}", nn.LayerNorm(dim))
        self.dropout = nn.Dropout(dropout)

    def _attend_self(self, x: Tensor, positions: Tensor, mask: QueryMask) -> Tensor:
        placed = x + positions
        return self.dropout(self.self_attn(placed, placed, x, mask))  # type: ignore[no-any-return]

    def _feed(self, x: Tensor) -> Tensor:
        hidden = self.linear1(x)
        if self.activation == "relu":  # fused: one tensor kept for the backward pass
            hidden = relu_dropout(hidden, self.dropout.p, self.training)
        else:
            hidden = self.dropout(_ACTIVATIONS[self.activation](hidden))
        return self.dropout(self.linear2(hidden))  # type: ignore[no-any-return]


class EncoderLayer(ResidualLayer):
    """Self-attention over image tokens and a feed-forward network, each with a residual and a norm.

    Args:
        dim: Features D.
        num_heads: Attention heads.
        ffn_dim: Features inside the feed-forward network.
        dropout: On attention weights, inside the feed-forward network and on both residual branches.
        pre_norm: Normalise the input of each branch instead of the sum after it.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool = False):
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout)
        self._make_feed_forward(dim, ffn_dim, dropout, norms=2)
        self.pre_norm = pre_norm

    def forward(self, tokens: Tensor, positions: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Turn ``[B, M, D]`` to ``[B, M, D]``."""
        if self.pre_norm:
            tokens = tokens + self._attend_self(self.norm1(tokens), positions, attn_mask)
            return tokens + self._feed(self.norm2(tokens))
        tokens = self.norm1(tokens + self._attend_self(tokens, positions, attn_mask))
        return self.norm2(tokens + self._feed(tokens))  # type: ignore[no-any-return]


class DecoderLayer(ResidualLayer):
    """Self-attention over queries, cross-attention to image tokens, feed-forward; arguments as EncoderLayer's."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool = False):
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout)
        self.multihead_attn = Attention(dim, num_heads, dropout)
        self._make_feed_forward(dim, ffn_dim, dropout, norms=3)
        self.pre_norm = pre_norm

    def forward(
        self,
        queries: Tensor,
        query_positions: Tensor,
        memory: Tensor,
        placed_memory: Tensor,
        attn_mask: Tensor | None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """Refine the queries once.

        Args:
            queries: ``[B, Q, D]``.
            query_positions: ``[B, Q, D]`` or broadcastable, the learned object queries.
            memory: ``[B, M, D]``, the encoder's output, read as values.
            placed_memory: The same plus positions, read as keys; the same for every layer.
            attn_mask: Which image tokens may be looked at.
            query_mask: Which queries may look at which, bool, broadcastable to ``[B, heads, Q, Q]``; None = all.
        """
        queries = self.attend_queries(queries, query_positions, query_mask)
        return self.look(queries, query_positions, memory, placed_memory, attn_mask)

    def attend_queries(self, queries: Tensor, query_positions: Tensor, query_mask: Tensor | None) -> Tensor:
        """Do the layer's first part, which does not depend on the image: self-attention."""
        if self.pre_norm:
            return queries + self._attend_self(self.norm1(queries), query_positions, query_mask)
        return self.norm1(  # type: ignore[no-any-return]
            queries + self._attend_self(queries, query_positions, query_mask)
        )

    def look(
        self,
        queries: Tensor,
        query_positions: Tensor,
        memory: Tensor,
        placed_memory: Tensor,
        attn_mask: Tensor | None,
    ) -> Tensor:
        """Do the rest: cross-attention and feed-forward; arguments as for the whole layer."""
        if self.pre_norm:
            normed = self.norm2(queries) + query_positions
            queries = queries + self.dropout(self.multihead_attn(normed, placed_memory, memory, attn_mask))
            return queries + self._feed(self.norm3(queries))
        looked = self.multihead_attn(queries + query_positions, placed_memory, memory, attn_mask)
        queries = self.norm2(queries + self.dropout(looked))
        return self.norm3(queries + self._feed(queries))  # type: ignore[no-any-return]


class Encoder(Recomputing):
    """A stack of encoder layers, with a last norm only where layers normalise first (as published)."""

    def __init__(self, layers: list[EncoderLayer], dim: int, pre_norm: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim) if pre_norm else None

    def forward(self, tokens: Tensor, positions: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Turn ``[B, M, D]`` to ``[B, M, D]``."""
        for layer in self.layers:
            tokens = run_part(self, layer, layer, tokens, positions, attn_mask)
        return tokens if self.norm is None else self.norm(tokens)


class Decoder(Recomputing):
    """A stack of decoder layers whose every output goes through one shared norm.

    Args:
        layers: Layers, first to last.
        dim: Features D.
        norm_between: The next layer reads what the norm gave out, and the last output goes through it twice, as in
            transformers where ``auxiliary_loss`` is on.

    Attributes:
        settled: Queries ``[Q, D]`` behind the first layer's self-attention, where they are known without an image;
            see :meth:`settle`.
        final_only: Return the last layer's output only.
    """

    settled: Tensor | None

    def __init__(self, layers: list[DecoderLayer], dim: int, norm_between: bool = False):
        super().__init__()
        self.norm_between = norm_between
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)
        self.final_only = False
        self.register_buffer("settled", None, persistent=False)

    @torch.no_grad()
    def settle(self, starts: Tensor, query_positions: Tensor) -> None:
        """Compute the first layer's self-attention for good, in place, for detection only.

        Args:
            starts: What queries start as, ``[1, Q, D]``, the same for every image.
            query_positions: The learned object queries, ``[1, Q, D]``.
        """
        first = self.layers[0]
        assert isinstance(first, DecoderLayer)
        self.settled = first.attend_queries(starts, query_positions, None)[0]
        self.final_only = True

    def forward(
        self,
        queries: Tensor,
        query_positions: Tensor,
        memory: Tensor,
        positions: Tensor,
        attn_mask: Tensor | None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the outputs of all layers ``[L, B, Q, D]``, or of the last alone, ``[1, B, Q, D]``.

        Args:
            queries: What queries start as, ``[B, Q, D]``; zeros in the paper (A.3).
            query_positions: The learned object queries, ``[B, Q, D]``.
            memory: The encoder's output, ``[B, M, D]``.
            positions: Of the image tokens, ``[B or 1, M, D]``.
            attn_mask: Which image tokens may be looked at.
            query_mask: As in :class:`DecoderLayer`.
        """
        placed_memory = memory + positions
        masks = (attn_mask, query_mask)
        outputs = []
        for number, layer in enumerate(self.layers):
            if number == 0 and self.settled is not None:
                assert isinstance(layer, DecoderLayer)
                settled = self.settled.to(memory.dtype).expand(memory.shape[0], -1, -1)
                queries = layer.look(settled, query_positions, memory, placed_memory, attn_mask)
            else:
                queries = run_part(self, layer, layer, queries, query_positions, memory, placed_memory, *masks)
            if self.final_only and number < len(self.layers) - 1 and not self.norm_between:
                continue
            outputs.append(self.norm(queries))
            if self.norm_between:
                queries = outputs[-1]
        if self.norm_between:
            outputs[-1] = self.norm(queries)
        return torch.stack(outputs[-1:] if self.final_only else outputs)
