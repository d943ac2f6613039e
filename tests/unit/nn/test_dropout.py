from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from detrkit.nn import dropout
from detrkit.nn.dropout import CpuMasks, cpu_dropout_attention, relu_dropout


def plain_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, kept: Tensor) -> Tensor:
    """Attention as the paper writes it, with a mask already scaled."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return (scores.softmax(-1) * kept) @ v


def the_mask(seed: int, shape: tuple[int, ...], rate: float, heads_at_once: int) -> Tensor:
    """What a call under this seed keeps, scaled."""
    torch.manual_seed(seed)
    masks = CpuMasks(rate)
    images, heads, *rest = shape
    total, each = images * heads, math.prod(rest)
    sizes = [min(heads_at_once, total - start) * each for start in range(0, total, heads_at_once)]
    kept = np.concatenate([masks.draw(size) for size in sizes])
    return torch.from_numpy(kept).view(shape) * masks.scale


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads_at_once", [1, 2, 100])
def test_attention_and_its_gradients_are_those_of_the_plain_formula(
    masked: bool, heads_at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dropout, "_CHUNK", heads_at_once * 5 * 7)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, n, 4, generator=generator, requires_grad=True) for n in (5, 7, 7))
    attn_mask = None
    if masked:
        attn_mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
        attn_mask[1, ..., 4:] = False
    kept = the_mask(0, (2, 3, 5, 7), 0.3, heads_at_once)
    expected = plain_attention(q, k, v, attn_mask, kept)
    torch.manual_seed(0)
    got = cpu_dropout_attention(q, k, v, attn_mask, 0.3)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # sums in another order
    upper = torch.randn(got.shape, generator=generator)
    for mine, theirs in zip(
        torch.autograd.grad(got, (q, k, v), upper), torch.autograd.grad(expected, (q, k, v), upper), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_attention_in_bf16_is_computed_in_float32():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 9, 8).bfloat16() for _ in range(3))
    torch.manual_seed(5)
    exact = cpu_dropout_attention(q.float(), k.float(), v.float(), None, 0.2)
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = cpu_dropout_attention(q, k, v, None, 0.2)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, exact.bfloat16())


@pytest.mark.parametrize("rate", [0.1, 0.5, 1e-9, 1 - 1e-9])
def test_masks_keep_the_asked_share_and_their_scale_makes_up_for_it(rate: float):
    torch.manual_seed(0)
    masks = CpuMasks(rate)
    kept = masks.draw(1_000_001)
    share = 1 / masks.scale
    assert abs(share - (1 - rate)) <= 1.0001 / 65536
    assert abs(kept.mean() - share) < 5 * math.sqrt(share * (1 - share) / len(kept)) + 1e-9
    pairs = kept[:-1] & kept[1:]  # neighbours do not know of each other
    assert abs(pairs.mean() - share**2) < 5 / math.sqrt(len(kept))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relu_dropout_lets_gradients_through_where_it_let_values_through(dtype: torch.dtype):
    torch.manual_seed(0)
    x = torch.randn(50, 40).to(dtype).requires_grad_()
    out = relu_dropout(x, 0.25, training=True)
    (gradient,) = torch.autograd.grad(out.float().sum(), x)
    passed = out > 0
    torch.testing.assert_close(out[passed], x[passed] * (4 / 3), rtol=1e-2, atol=0)
    torch.testing.assert_close(gradient, passed.to(dtype) * (4 / 3), rtol=1e-2, atol=0)
    assert 0.7 < passed.sum() / (x > 0).sum() < 0.8
    assert not out[x <= 0].any()
