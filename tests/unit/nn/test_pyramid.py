from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detrkit.nn.position import SinePosition
from detrkit.nn.pyramid import FeaturePyramid
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
