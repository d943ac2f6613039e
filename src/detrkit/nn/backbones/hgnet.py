"""HGNetV2 backbones, as D-FINE has them (arXiv:2410.13842, from PaddleDetection).

Padding is kept at zero in front of every layer that looks at neighbours, as in :mod:`detrkit.nn.backbones.resnet`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from detrkit.nn.backbones.resnet import ValidRegion, shrunk_mask
from detrkit.nn.pyramid import ConvNorm, LightLayer
from detrkit.nn.recompute import Recomputing, run_part


class Stage(NamedTuple):
    """Sizes of a stage: channels inside and behind, blocks, layers of a block, side of kernels, light layers."""

    mid: int
    out: int
    blocks: int
    layers: int
    kernel: int
    light: bool


_STEMS = {"hgnetv2-b0": (16, 16), "hgnetv2-b2": (24, 32), "hgnetv2-b4": (32, 48), "hgnetv2-b5": (32, 64)}
_STAGES = {
    "hgnetv2-b0": ((16, 64, 1, 3), (32, 256, 1, 3), (64, 512, 2, 3), (128, 1024, 1, 3)),
    "hgnetv2-b2": ((32, 96, 1, 4), (64, 384, 1, 4), (128, 768, 3, 4), (256, 1536, 1, 4)),
    "hgnetv2-b4": ((48, 128, 1, 6), (96, 512, 1, 6), (192, 1024, 3, 6), (384, 2048, 1, 6)),
    "hgnetv2-b5": ((64, 128, 1, 6), (128, 512, 2, 6), (256, 1024, 5, 6), (512, 2048, 2, 6)),
}
HGNETS = tuple(_STEMS)
"""Names of the backbones."""
_SCALED = ("hgnetv2-b0", "hgnetv2-b2")
"""Those whose activations are scaled and shifted by two learned numbers."""


def hgnet_sizes(name: str) -> tuple[tuple[int, int], list[Stage], bool]:
    """Return the channels of a stem, the sizes of the stages, and whether activations are scaled."""
    stages = [Stage(*sizes, 3 if number < 2 else 5, number >= 2) for number, sizes in enumerate(_STAGES[name])]
    return _STEMS[name], stages, name in _SCALED


class _Block(nn.Module):
    """Layers one after another, of whose outputs two convolutions make one."""

    def __init__(self, channels: int, stage: Stage, residual: bool, **how: Any):
        super().__init__()
        layer = LightLayer if stage.light else ConvNorm
        widths = [channels, *[stage.mid] * (stage.layers - 1)]
        self.layers = nn.ModuleList(layer(width, stage.mid, stage.kernel, **how) for width in widths)
        total = channels + stage.layers * stage.mid
        self.aggregation = nn.ModuleList(
            (ConvNorm(total, stage.out // 2, 1, **how), ConvNorm(stage.out // 2, stage.out, 1, **how))
        )
        self.residual = residual

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(found[-1], valid))
        y = torch.cat(found, dim=1)
        for layer in self.aggregation:
            y = layer(y, valid)
        return y + x if self.residual else y


class _Stem(nn.Module):
    """Four times smaller: two ways side by side, of 2 x 2 convolutions and of a maximum."""

    def __init__(self, inner: int, out: int, **how: Any):
        super().__init__()
        self.stem1 = ConvNorm(3, inner, 3, 2, **how)
        self.stem2a = ConvNorm(inner, inner // 2, 2, **how)
        self.stem2b = ConvNorm(inner // 2, inner, 2, **how)
        self.stem3 = ConvNorm(2 * inner, inner, 3, 2, **how)
        self.stem4 = ConvNorm(inner, out, 1, **how)

    def forward(self, images: Tensor, region: ValidRegion | None) -> Tensor:
        valid = None if region is None else region.at(2, images[:, :, ::2, ::2])
        x = self.stem1(images, None, valid)  # images are zero on padding already
        if valid is not None:
            x = x * valid.to(x.dtype)
        x = functional.pad(x, (0, 1, 0, 1))
        y = self.stem2a(x, None, valid)
        y = functional.pad(y if valid is None else y * valid.to(y.dtype), (0, 1, 0, 1))
        both = torch.cat((_highest_of_four(x), self.stem2b(y, None, valid)), dim=1)
        x = self.stem3(both, valid, None if region is None else region.at(4, both[:, :, ::2, ::2]))
        return self.stem4(x, None if region is None else region.at(4, x))  # type: ignore[no-any-return]


def _highest_of_four(x: Tensor) -> Tensor:
    """Return the maximum of every 2 x 2 cells; by slices where pooling takes a CPU four times as long."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return functional.max_pool2d(x, 2, 1)
    x = torch.maximum(x[:, :, :-1], x[:, :, 1:])
    return torch.maximum(x[..., :-1], x[..., 1:])


class HgStage(nn.Module):
    """Blocks behind a strided convolution of each channel by itself, which the first stage lacks."""

    def __init__(self, channels: int, stage: Stage, first: bool, **how: Any):
        super().__init__()
        plain = {"act": "", "norm": how["norm"]}
        self.downsample = None if first else ConvNorm(channels, channels, 3, 2, groups=channels, **plain)
        widths = [channels, *[stage.out] * (stage.blocks - 1)]
        self.blocks = nn.ModuleList(_Block(width, stage, number > 0, **how) for number, width in enumerate(widths))


class HgNetBackbone(Recomputing):
    """HGNetV2: a stem ``conv1``, then stages ``layer1`` to ``layer4``, of strides 4 to 32.

    Args:
        name: One of :data:`HGNETS`.
        norm: ``frozen``, ``group`` or ``batch``.
        frozen_stages: How many stages are not trained, the stem counting as the first.
        exact_padding: Keep padding at zero inside the network.
    """

    def __init__(self, name: str, *, norm: str, frozen_stages: int = 0, exact_padding: bool = True):
        super().__init__()
        (inner, channels), stages, scaled = hgnet_sizes(name)
        how = {"norm": norm, "scaled": scaled}
        self.body = nn.Module()
        self.body.conv1 = _Stem(inner, channels, **how)
        self.channels = [stage.out for stage in stages]
        self.exact_padding = exact_padding
        for number, stage in enumerate(stages, start=1):
            self.body.add_module(f"layer{number}", HgStage(channels, stage, number == 1, **how))
            channels = stage.out
        for part in list(self.body.children())[:frozen_stages]:
            part.requires_grad_(False)

    def pyramid(
        self, images: Tensor, padding_mask: Tensor | None, levels: int
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Compute features of the last stages; as :meth:`detrkit.nn.backbones.resnet.ResNetBackbone.pyramid`."""
        exact = padding_mask is not None and self.exact_padding
        region = ValidRegion(padding_mask, images.dtype) if exact else None
        stem, *stages = self.body.children()
        x = stem(images, region)
        found: list[tuple[Tensor, Tensor | None]] = []
        stride = 4
        for number, stage in enumerate(stages):
            assert isinstance(stage, HgStage)
            valid = None if region is None else region.at(stride, x)
            if stage.downsample is not None:
                stride *= 2
                smaller = None if region is None else region.at(stride, x[:, :, ::2, ::2])
                x = stage.downsample(x, valid, smaller)
                valid = smaller
            for block in stage.blocks:
                x = run_part(self, block, block, x, valid)
            if len(stages) - number <= levels:
                found.append((x, shrunk_mask(x, padding_mask, region, stride)))
        return found
