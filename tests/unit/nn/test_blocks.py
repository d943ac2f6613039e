from __future__ import annotations

import pytest
import torch
from torch import nn

from detrkit.nn.attention import Attention
from detrkit.nn.position import LearnedPosition, SinePosition
from detrkit.nn.pyramid import ConvNorm
from detrkit.nn.transformer import DecoderLayer, EncoderLayer


def test_attention_equals_torchs_multihead_attention():
    torch.manual_seed(0)
    ours, theirs = Attention(32, 4).eval(), nn.MultiheadAttention(32, 4, batch_first=True).eval()
    ours.load_state_dict(theirs.state_dict())
    query, key, value = torch.randn(2, 5, 32), torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    expected, _ = theirs(query, key, value, key_padding_mask=padding)
    got = ours(query, key, value, attn_mask=~padding[:, None, None])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_layers_equal_torchs_transformer_layers_without_positions(pre_norm: bool):
    torch.manual_seed(0)
    encoder_layer = EncoderLayer(32, 4, 64, 0.0, pre_norm).eval()
    theirs = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=pre_norm).eval()
    encoder_layer.load_state_dict(theirs.state_dict())
    tokens, zero = torch.randn(2, 7, 32), torch.zeros(1, 7, 32)
    torch.testing.assert_close(encoder_layer(tokens, zero, None), theirs(tokens), rtol=1e-5, atol=1e-5)

    decoder_layer = DecoderLayer(32, 4, 64, 0.0, pre_norm).eval()
    theirs_decoder = nn.TransformerDecoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=pre_norm).eval()
    decoder_layer.load_state_dict(theirs_decoder.state_dict())
    queries = torch.randn(2, 3, 32)
    got = decoder_layer(queries, torch.zeros(3, 32), tokens, tokens, None)
    torch.testing.assert_close(got, theirs_decoder(queries, tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", [SinePosition(32), LearnedPosition(32)])
def test_positions_of_an_image_do_not_depend_on_padding(position: nn.Module):
    alone = position(torch.zeros(1, 8, 4, 6), None)
    padding = torch.ones(1, 5, 9, dtype=torch.bool)
    padding[0, :4, :6] = False
    padded = position(torch.zeros(1, 8, 5, 9), padding).unflatten(1, (5, 9))[:, :4, :6].flatten(1, 2)
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-6)


def test_learned_positions_of_a_huge_map_repeat_the_last_instead_of_failing():
    position = LearnedPosition(8)
    tokens = position(torch.zeros(1, 8, 2, 60), None).unflatten(1, (2, 60))
    torch.testing.assert_close(tokens[0, 0, 59], tokens[0, 0, 49])


def test_attention_in_bf16_learns_as_in_float32_and_sees_nothing_that_is_hidden():
    torch.manual_seed(0)
    attention, x, mask = Attention(16, 2), torch.randn(2, 6, 16), torch.ones(1, 1, 6, 6, dtype=torch.bool)
    mask[..., 4:] = False
    changed = x.clone()
    changed[:, 4:] += 1

    def learn(values: torch.Tensor, *, bf16: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = attention(values, values, values, mask)[:, :4].float()
        [gradient] = torch.autograd.grad(found.square().sum(), attention.in_proj_weight)
        return found.detach(), gradient

    exact, exact_gradient = learn(x, bf16=False)
    found, gradient = learn(x, bf16=True)
    assert torch.equal(found, learn(changed, bf16=True)[0])
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0.02)
    torch.testing.assert_close(gradient, exact_gradient, atol=0.05, rtol=0.05)


def test_convolutions_of_channels_apart_are_trained_in_float32_on_the_cpu():
    layer, x = ConvNorm(8, 8, 3, groups=8, norm="batch", act=""), torch.randn(2, 8, 6, 6).bfloat16()
    types: list[torch.dtype] = []
    layer.conv.register_forward_hook(lambda _layer, given, _found: types.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x, None).dtype == torch.bfloat16  # float32 would spread to all that is joined with it
        torch.no_grad()(layer)(x, None)
        assert ConvNorm(8, 8, 3, norm="frozen")(x, None).dtype == torch.bfloat16  # its norm is of float32
    assert types == [torch.float32, torch.bfloat16]
