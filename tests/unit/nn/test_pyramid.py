from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detrkit.nn.backbones.resnet import fold_norm
from detrkit.nn.position import SinePosition
from detrkit.nn.pyramid import ConvNorm, FeaturePyramid, _ShiftedRelu, enlarged
from detrkit.nn.transformer import Encoder, EncoderLayer

DIM = 16
# Maps of an image of 70 x 90 pixels at strides 8 and 16, and of a batch that pads it.
SIZES, PADDED = [(9, 12), (5, 6)], [(13, 15), (7, 8)]


def build(norm: str = "group", *, extra_levels: int = 1, encoder: bool = True) -> FeaturePyramid:
    torch.manual_seed(0)
    layers = Encoder([EncoderLayer(DIM, 2, 32, 0.0)], DIM) if encoder else None
    pyramid = FeaturePyramid((8, 12), DIM, layers, extra_levels=extra_levels, norm=norm).eval()
    for name, buffer in pyramid.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    for name, parameter in pyramid.named_parameters():
        if ".norm.bias" in name:  # as after training: padding would leak through it
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return pyramid


def make_maps(sizes: list[tuple[int, int]], images: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(images, c, *size, generator=generator) for c, size in zip((8, 12), sizes, strict=True)]


def scaled_layer(scale: float, dim: int, training: bool) -> ConvNorm:
    torch.manual_seed(0)
    layer = ConvNorm(3, dim, 3, norm="batch", scaled=True).train(training)
    for parameter in (layer.norm.weight, layer.norm.bias, layer.lab.bias):
        torch.nn.init.uniform_(parameter, 0.2, 0.7)
    torch.nn.init.constant_(layer.lab.scale, scale)
    torch.nn.init.uniform_(layer.norm.running_var, 0.5, 1.5)
    return layer


@pytest.mark.parametrize("scale", [1.7, -0.6])
@pytest.mark.parametrize("dim", [8, 16])
@pytest.mark.parametrize("training", [True, False])
def test_scale_and_shift_behind_a_relu_and_their_gradients(scale: float, dim: int, training: bool):
    layer, x = scaled_layer(scale, dim, training), torch.randn(2, 3, 7, 9).to(memory_format=torch.channels_last)
    plain = scaled_layer(scale, dim, training)
    wanted = plain.lab.scale * plain.norm(plain.conv(x)).relu() + plain.lab.bias
    found = layer(x, None)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(wanted)
    wanted.backward(upstream)
    found.backward(upstream)
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    torch.testing.assert_close(gradients, {n: p.grad for n, p in plain.named_parameters()}, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())  # the norm counted alike


@pytest.mark.parametrize("scale", [1.7, -0.6])
def test_folded_scale_and_shift_change_nothing(scale: float):
    layer, x = scaled_layer(scale, 16, False), torch.randn(2, 3, 7, 9)
    wanted = layer(x, None)
    fold_norm(layer, "conv", "norm")
    layer.fold_scale()
    assert layer.lab is None
    with torch.no_grad():
        torch.testing.assert_close(layer(x, None), wanted, atol=1e-5, rtol=1e-5)


def test_a_coarse_map_is_repeated_up_to_the_finer_one():
    coarse, fine = torch.arange(6.0).view(1, 1, 2, 3), torch.zeros(1, 1, 3, 5)
    assert enlarged(coarse, fine).tolist() == [[[[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]]]


@pytest.mark.parametrize("extra_levels", [0, 1, 2])
def test_levels_halve_and_have_one_width(extra_levels: int):
    mixed, masks = build(extra_levels=extra_levels)(make_maps(SIZES), [None, None], SinePosition(DIM))
    sizes = [(9, 12), (5, 6), (3, 3), (2, 2)][: 2 + extra_levels]
    assert [tuple(x.shape) for x in mixed] == [(1, DIM, *size) for size in sizes]
    assert masks == [None] * len(sizes)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("extra_levels", [0, 2])
def test_padding_changes_nothing(norm: str, extra_levels: int):
    pyramid, position = build(norm, extra_levels=extra_levels), SinePosition(DIM)
    alone = make_maps(SIZES)
    padded, masks = [], []
    for x, (height, width), (full_height, full_width) in zip(alone, SIZES, PADDED, strict=True):
        beside = torch.randn(2, x.shape[1], full_height, full_width)  # rubbish on the padding of the first
        beside[0, :, :height, :width] = x[0]
        mask = torch.zeros(2, full_height, full_width, dtype=torch.bool)
        mask[0, height:], mask[0, :, width:] = True, True
        padded.append(beside)
        masks.append(mask)
    with torch.no_grad():
        wanted, _ = pyramid(alone, [None, None], position)
        found, found_masks = pyramid(padded, masks, position)
    for level, (x, y, mask) in enumerate(zip(wanted, found, found_masks, strict=True)):
        height, width = x.shape[-2:]
        assert mask is not None
        assert not mask[0, :height, :width].any()
        assert int((~mask[0]).sum()) == height * width
        torch.testing.assert_close(y[:1, :, :height, :width], x, rtol=1e-4, atol=1e-5, msg=f"level {level}")


def test_a_shifted_relu_in_bf16_passes_no_gradient_where_it_cuts():
    x = torch.full((1, 4), -1.0, dtype=torch.bfloat16, requires_grad=True)
    _ShiftedRelu.apply(x.clone(), torch.tensor([0.1])).sum().backward()  # the shift is rounded up
    assert not x.grad.any()


def test_gradient_of_a_part_of_a_concatenation_is_laid_out_as_the_part():
    y, seen = ConvNorm(3, 16, 1, norm="batch", act="")(torch.randn(2, 3, 8, 8), None), []
    y.register_hook(lambda gradient: seen.append(gradient.stride()))
    (torch.cat((y, torch.ones(2, 4, 8, 8)), dim=1) * torch.randn(2, 20, 8, 8)).sum().backward()
    assert seen == [y.stride()]
