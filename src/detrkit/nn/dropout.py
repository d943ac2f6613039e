"""Dropout that keeps little for the backward pass, and draws its masks fast on the CPU.

A feed-forward network keeps one tensor of its inside instead of three. On the CPU, attention with dropout keeps a
bit per weight instead of three float32: PyTorch's fused kernel for CPUs knows no dropout, and what stands in for
it materialises all weights of all heads at once.

Masks on the CPU: PyTorch draws them one number at a time, which took a tenth of a training step of DETR-R50. Here
one number from PyTorch's generator seeds numpy's SFC64, whose every 64 bits decide on four elements. Masks are
therefore a function of ``torch.manual_seed`` as before, and recomputed activations get the same ones. A rate is
rounded to a 65,536th (0.1 becomes 0.100006), and what is kept is scaled by exactly the rounded rate.

Shapes: B images, N queries, M keys, heads H, features of a head F.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Attention weights in work at once: 4 MiB in float32, which the caches of a CPU hold.
_CHUNK = 2**20
_STEPS = 2**16


class CpuMasks:
    """Draws masks of what dropout keeps, on the CPU.

    Args:
        rate: Share to drop, 0 to 1, both excluded.
    """

    def __init__(self, rate: float):
        self._dropped = min(max(round(rate * _STEPS), 1), _STEPS - 1)
        self.scale = _STEPS / (_STEPS - self._dropped)
        self._bits = np.random.SFC64(int(torch.randint(2**63 - 1, ())))

    def draw(self, count: int) -> np.ndarray:
        """Return the next ``count`` elements of the mask, bool, True = kept."""
        words = self._bits.random_raw(-(-count // 4))
        return words.view(np.uint16)[:count] >= self._dropped


def relu_dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Compute ``dropout(relu(x))``; the backward pass needs only what comes out of it."""
    if not training or rate == 0:
        return functional.relu(x)
    return _ReluDropout.apply(x, rate)  # type: ignore[no-any-return]


class _ReluDropout(torch.autograd.Function):
    """What comes out is above 0 just where the input was and was kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        out = functional.relu(x)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            masks = CpuMasks(rate)
            kept = torch.from_numpy(masks.draw(out.numel())).view(out.shape)
            out.mul_(kept).mul_(masks.scale)
            ctx.scale = masks.scale
        else:
            out = functional.dropout(out, rate, training=True)
            ctx.scale = 1 / (1 - rate)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, out, 0).mul_(ctx.scale), None


def cpu_dropout_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, rate: float) -> Tensor:
    """Compute attention with dropout on its weights, a few heads at a time, in float32.

    The backward pass computes the weights again (as in arXiv:2205.14135), from a bit of mask for each.

    Args:
        q: ``[B, H, N, F]``.
        k: ``[B, H, M, F]``.
        v: ``[B, H, M, F]``.
        attn_mask: bool, broadcastable to ``[B, H, N, M]``, True = may attend; None = all may.
        rate: Share of the weights to drop, above 0.

    Returns:
        ``[B, H, N, F]`` in the dtype of ``v``.
    """
    return _DropoutAttention.apply(q, k, v, attn_mask, rate)  # type: ignore[no-any-return]


class _DropoutAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, rate: float) -> Tensor:
        masks = CpuMasks(rate)
        weights = _Weights(q, k, attn_mask)
        values = _by_head(v)
        mixed = torch.empty(len(values), q.shape[2], v.shape[3])
        packed = []
        with torch.autocast("cpu", enabled=False):
            for part in weights.parts():
                chunk = weights.of(part)
                kept = masks.draw(chunk.numel())
                packed.append(np.packbits(kept))
                chunk.mul_(torch.from_numpy(kept).view(chunk.shape))
                torch.bmm(chunk, values[part], out=mixed[part])
            mixed.mul_(masks.scale)
        out = mixed.view(v.shape[0], v.shape[1], *mixed.shape[1:]).to(v.dtype)
        ctx.scale = masks.scale
        ctx.save_for_backward(q, k, v, attn_mask, out, torch.from_numpy(np.concatenate(packed)))
        ctx.packed_sizes = [len(bits) for bits in packed]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, attn_mask, out, packed = ctx.saved_tensors
        weights = _Weights(q, k, attn_mask)
        values, upper = _by_head(v), _by_head(gradient) * ctx.scale
        # of softmax: each weight's gradient less the mean of its row's, which is what went through the output
        means = (_by_head(gradient) * _by_head(out)).sum(-1, keepdim=True)
        to_q, to_k, to_v = (torch.empty_like(part) for part in (weights.queries, weights.keys, values))
        bits_of_part = torch.split(packed, ctx.packed_sizes)
        with torch.autocast("cpu", enabled=False):
            for part, bits in zip(weights.parts(), bits_of_part, strict=True):
                chunk = weights.of(part)
                kept = np.unpackbits(bits.numpy(), count=chunk.numel())
                mask = torch.from_numpy(kept).view(torch.bool).view(chunk.shape)
                torch.bmm((chunk * mask).transpose(1, 2), upper[part], out=to_v[part])
                slope = torch.bmm(upper[part], values[part].transpose(1, 2)).mul_(mask)
                slope.sub_(means[part]).mul_(chunk)
                torch.bmm(slope, weights.keys[part], out=to_q[part])
                torch.bmm(slope.transpose(1, 2), weights.queries[part], out=to_k[part])
            # the queries are scaled already, which is the keys' share; the queries' own comes here
            to_q.mul_(weights.scale)
        return (
            to_q.view(q.shape).to(q.dtype),
            to_k.view(k.shape).to(k.dtype),
            to_v.view(v.shape).to(v.dtype),
            None,
            None,
        )


class _Weights:
    """Attention weights before dropout, computed part by part: some heads of ``B * H`` at a time."""

    def __init__(self, q: Tensor, k: Tensor, attn_mask: Tensor | None):
        self.scale = 1 / math.sqrt(q.shape[-1])
        self.queries = _by_head(q) * self.scale
        self.keys = _by_head(k)
        self._forbidden = None
        if attn_mask is not None:
            shape = (*q.shape[:2], *attn_mask.shape[-2:])
            self._forbidden = attn_mask.expand(shape).flatten(0, 1).logical_not()
        self._heads_at_once = max(1, _CHUNK // (q.shape[2] * k.shape[2]))

    def parts(self) -> list[slice]:
        """Return slices of ``B * H``, in order."""
        step = self._heads_at_once
        return [slice(start, start + step) for start in range(0, len(self.queries), step)]

    def of(self, part: slice) -> Tensor:
        """Weights ``[heads of the part, N, M]``, float32; the same bits each time."""
        scores = torch.bmm(self.queries[part], self.keys[part].transpose(1, 2))
        if self._forbidden is not None:
            scores.masked_fill_(self._forbidden[part], -torch.inf)
        return scores.softmax(-1)


def _by_head(x: Tensor) -> Tensor:
    """Turn ``[B, H, N, F]`` to float32 ``[B * H, N, F]``."""
    return x.float().flatten(0, 1)
