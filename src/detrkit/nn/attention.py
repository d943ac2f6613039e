"""Multi-head attention with positions on queries and keys, through PyTorch's fused kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from detrkit.nn.dropout import cpu_dropout_attention

# Added to the score of what may not be attended: its weight is exactly 0, and 16-bit numbers hold it.
_FAR = -1e4


QueryMask = Tensor | tuple[Tensor | None, Tensor] | None
"""Which of K queries may look at which, bool, broadcastable to ``[B, heads, K, K]``, True = may; None = all may.

Or, where the first look at each other alone, two masks, which saves products: of the first K - N, or None, and of
the other N at all, ``[1 or B, 1, N, K]``.
"""


class Attention(nn.Module):
    """Multi-head attention (arXiv:1706.03762, section 3.2.2), parameters laid out as nn.MultiheadAttention's.

    Positions belong to queries and keys, never to values (arXiv:2005.12872, A.4); the caller adds them.

    Args:
        dim: Features D.
        num_heads: Heads, a divisor of D.
        dropout: On attention weights, in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        projection = nn.Linear(dim, 3 * dim)
        self.in_proj_weight = projection.weight
        self.in_proj_bias = projection.bias
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: QueryMask = None) -> Tensor:
        """Attend.

        Args:
            query: ``[B, N, D]``. The same tensor as ``key`` in self-attention saves a product.
            key: ``[B, M, D]``.
            value: ``[B, M, D]``.
            attn_mask: bool, broadcastable to ``[B, heads, N, M]``, True = may attend; None = all may.
                In self-attention, as :data:`QueryMask`.

        Returns:
            ``[B, N, D]``.
        """
        dim = query.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key:
            q, k = functional.linear(query, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
        else:
            q = functional.linear(query, weight[:dim], bias[:dim])
            k = functional.linear(key, weight[dim : 2 * dim], bias[dim : 2 * dim])
        v = functional.linear(value, weight[2 * dim :], bias[2 * dim :])
        q, k, v = (self._split_heads(part) for part in (q, k, v))
        if isinstance(attn_mask, tuple):
            count = q.shape[2] - attn_mask[1].shape[2]
            first = self._mix(q[:, :, :count], k[:, :, :count], v[:, :, :count], attn_mask[0])
            mixed = torch.cat((first, self._mix(q[:, :, count:], k, v, attn_mask[1])), dim=2)
        else:
            mixed = self._mix(q, k, v, attn_mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Weigh values ``[B, heads, M, D / heads]``."""
        rate = self.dropout if self.training else 0.0
        # the fused kernel's gradient in bf16 takes the CPU twice as long as plain products
        slow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled() and not rate
        if torch.compiler.is_exporting() or slow:
            return _plain_attention(q, k, v, attn_mask)
        if rate and q.device.type == "cpu" and not torch.compiler.is_compiling():
            return cpu_dropout_attention(q, k, v, attn_mask, rate)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=rate)

    def _split_heads(self, x: Tensor) -> Tensor:
        """Turn ``[B, N, D]`` to ``[B, heads, N, D / heads]``."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None) -> Tensor:
    """Attend by plain products, for graphs and for what is slow in the fused kernel.

    From the fused kernel torch would make a graph that looks for rows that may attend nothing, or, from operator
    set 23 on, ONNX's Attention, for which ONNX Runtime wants the mask written out for every query.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if attn_mask is not None:
        scores += torch.where(attn_mask, 0.0, _FAR).to(scores.dtype)
    return torch.matmul(scores.softmax(-1), v)
