"""A pyramid of feature maps: self-attention on the coarsest, then a way down and up again between them.

Attention inside the coarsest map only is RT-DETR's (arXiv:2304.08069, section 4.2), the way down FPN's
(arXiv:1612.03144), the way up PAN's (arXiv:1803.01534).

Shapes: B images, D features, h x w cells of a level. Levels go from fine to coarse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

from detrkit.nn.norm import NORMS, PaddedGroupNorm, convolve_folded
from detrkit.nn.transformer import Encoder


def _silu(x: Tensor) -> Tensor:
    """Apply SiLU, in place where no gradient needs what it was."""
    return functional.silu(x, inplace=not x.requires_grad)


# With fewer channels than these last in memory, the gradient of torch's batch norm takes a CPU ten times as long.
_FEW_CHANNELS = 16
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu_, "silu": _silu}


def _laid_out(x: Tensor) -> Tensor:
    """Have the gradient laid out as ``x`` is: norms and ReLU take parts of concatenations ten times as long."""
    if x.requires_grad and x.is_cpu and not torch.compiler.is_compiling():
        shape, stride, register = x.shape, x.stride(), cast(Any, x.register_hook)
        register(lambda g: g if g.stride() == stride else g.new_empty_strided(shape, stride).copy_(g))
    return x


class _ScaleShift(nn.Module):
    """A factor and a summand, as PaddleDetection's learnable affine block."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))


class _ShiftedRelu(torch.autograd.Function):
    """Applies ReLU and adds a learned number, in place and in one pass: to what has that number in it already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor) -> Tensor:
        ctx.bound = shift.to(x.dtype).item()
        ctx.mark_dirty(x.clamp_(min=ctx.bound))
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, x, ctx.bound), gradient.sum().float()[None]


class ConvNorm(nn.Module):
    """A convolution, a norm and an activation, none of which lets padding leak into the image.

    Args:
        channels: Of the input.
        dim: Of the output.
        kernel_size: Side of the kernel.
        stride: Cells from one output to the next.
        norm: As for backbones.
        act: ``relu``, ``silu`` or nothing.
        groups: Of channels that are convolved apart.
        scaled: What is behind the activation is scaled and shifted by a learned number each.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        kernel_size: int,
        stride: int = 1,
        *,
        norm: str,
        act: str = "relu",
        groups: int = 1,
        scaled: bool = False,
    ):
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(channels, dim, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm = NORMS[norm](dim)
        self.act = act
        self.lab = _ScaleShift() if scaled else None
        self._bounds: tuple[float | None, float | None] | None = None
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, valid: Tensor | None, valid_out: Tensor | None = None) -> Tensor:
        """Apply to ``[B, C, h, w]``.

        Args:
            x: Features.
            valid: ``[B, 1, h, w]``, 1 on the image and 0 on padding; None = no padding.
            valid_out: The same of the output, where its size differs.
        """
        sees_padding = valid is not None and self.conv.kernel_size != (1, 1)
        # a frozen norm, of float32, would make all that comes after it so in mixed precision
        folds = isinstance(self.norm, FrozenBatchNorm2d) and torch.is_autocast_enabled(x.device.type)
        x = self._convolve(x * valid.to(x.dtype) if sees_padding and valid is not None else x, folds)
        inside = valid if valid_out is None else valid_out
        if self._bounds is not None:
            return x.clamp_(*self._bounds)
        if self.lab is not None and self._scales_early(self.lab):
            return _laid_out(self._norm_scaled(x, self.lab))
        if not folds:
            x = self.norm(x, inside) if isinstance(self.norm, PaddedGroupNorm) else self.norm(x)
        x = _ACTIVATIONS[self.act](x) if self.act else x
        if self.lab is None:
            return _laid_out(x)
        return torch.addcmul(self.lab.bias.to(x.dtype), x, self.lab.scale.to(x.dtype))

    def _scales_early(self, lab: _ScaleShift) -> bool:
        """Return True where a scale behind the ReLU may as well lie in front of it."""
        plain = isinstance(self.norm, nn.BatchNorm2d) and self.act == "relu"
        return plain and lab.scale.is_cpu and not torch.compiler.is_compiling() and lab.scale.item() > 0

    def _norm_scaled(self, x: Tensor, lab: _ScaleShift) -> Tensor:
        """Normalise, apply ReLU, scale and shift, in half the passes over memory: the norm scales."""
        norm: Any = self.norm
        if x.shape[1] < _FEW_CHANNELS:
            x = x.contiguous()
        if norm.training:
            norm.num_batches_tracked += 1
        affine = norm.weight * lab.scale, torch.addcmul(lab.bias.detach(), norm.bias, lab.scale)
        x = functional.batch_norm(
            x, norm.running_mean, norm.running_var, *affine, norm.training, norm.momentum, norm.eps
        )
        return _ShiftedRelu.apply(x, lab.bias)  # type: ignore[no-any-return]

    @torch.no_grad()
    def fold_scale(self) -> None:
        """Fold scale s and shift t behind a ReLU into the convolution, in place, once its norm is folded.

        What was s * relu(x) + t is s * x + t then, not below t; where s is negative, not above it.
        """
        if self.lab is None or self.act != "relu" or not isinstance(self.norm, nn.Identity):
            return
        assert self.conv.bias is not None
        scale, shift = self.lab.scale.item(), self.lab.bias.item()
        self.conv.weight *= scale
        self.conv.bias.mul_(scale).add_(shift)
        self._bounds = (None, shift) if scale < 0 else (shift, None)
        self.lab = None

    def _convolve(self, x: Tensor, folds: bool) -> Tensor:
        """Convolve; channels apart in float32 where the CPU trains: in bf16 that takes ten times as long."""
        conv: Any = partial(convolve_folded, conv=self.conv, norm=cast(Any, self.norm)) if folds else self.conv
        if self.conv.groups == 1 or x.device.type != "cpu" or not torch.is_grad_enabled():
            return conv(x)  # type: ignore[no-any-return]
        with torch.autocast("cpu", enabled=False):
            return conv(x.float()).to(x.dtype)  # type: ignore[no-any-return]


class LightLayer(nn.Module):
    """A 1 x 1 convolution, and one of each channel by itself (arXiv:2405.14458, section 3.2)."""

    def __init__(self, channels: int, dim: int, kernel_size: int, stride: int = 1, **how: Any):
        super().__init__()
        self.conv1 = ConvNorm(channels, dim, 1, act="", norm=how["norm"])
        self.conv2 = ConvNorm(dim, dim, kernel_size, stride, groups=dim, **how)

    def forward(self, x: Tensor, valid: Tensor | None, valid_out: Tensor | None = None) -> Tensor:
        """Apply to ``[B, C, h, w]``; as :meth:`ConvNorm.forward`."""
        return self.conv2(self.conv1(x, valid), valid, valid_out)  # type: ignore[no-any-return]


class FeaturePyramid(nn.Module):
    """Mixes feature maps of several strides, each half the size of the one before.

    Args:
        channels: Of the backbone's maps, fine to coarse.
        dim: Features D.
        encoder: Self-attention on the coarsest level; None = none.
        extra_levels: Further levels that begin with a strided convolution of the last map.
        norm: As for backbones.
    """

    def __init__(
        self, channels: Sequence[int], dim: int, encoder: Encoder | None, *, extra_levels: int = 0, norm: str
    ):
        super().__init__()
        levels = len(channels) + extra_levels
        self.lateral = nn.ModuleList(ConvNorm(count, dim, 1, norm=norm, act="") for count in channels)
        self.extra = nn.ModuleList(
            ConvNorm(channels[-1] if number == 0 else dim, dim, 3, 2, norm=norm, act="")
            for number in range(extra_levels)
        )
        self.encoder = encoder
        self.down = nn.ModuleList(ConvNorm(dim, dim, 3, norm=norm) for _ in range(levels - 1))
        self.stride = nn.ModuleList(ConvNorm(dim, dim, 3, 2, norm=norm, act="") for _ in range(levels - 1))
        self.up = nn.ModuleList(ConvNorm(dim, dim, 3, norm=norm) for _ in range(levels - 1))

    def forward(
        self, maps: Sequence[Tensor], masks: Sequence[Tensor | None], position: nn.Module
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Mix.

        Args:
            maps: ``[B, C, h, w]`` each, fine to coarse.
            masks: bool ``[B, h, w]`` each, True = padding; None = no padding.
            position: Gives position encodings of a feature map as tokens.

        Returns:
            ``[B, D, h, w]`` of every level, further ones included, and their masks.
        """
        mixed, masks = project_levels(self.lateral, self.extra, maps, masks, self.encoder, position)
        valid = [valid_cells(mask) for mask in masks]
        for level in reversed(range(len(mixed) - 1)):
            mixed[level] = self.down[level](mixed[level] + enlarged(mixed[level + 1], mixed[level]), valid[level])
        for level in range(len(mixed) - 1):
            strided = self.stride[level](mixed[level], valid[level], valid[level + 1])
            mixed[level + 1] = self.up[level](mixed[level + 1] + strided, valid[level + 1])
        return mixed, masks


def project_levels(
    lateral: Iterable[nn.Module],
    extra: Iterable[nn.Module],
    maps: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    encoder: Encoder | None,
    position: nn.Module,
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return maps of the same features from a backbone's, and coarser ones, each with its mask.

    The cells of the coarsest have attended to each other.

    Args:
        lateral: A layer for each map.
        extra: A strided layer for each coarser map; the first reads the last of ``maps``.
        maps: ``[B, C, h, w]`` each, fine to coarse.
        masks: bool ``[B, h, w]`` each, True = padding; None = no padding.
        encoder: Self-attention; None = none.
        position: Gives position encodings of a feature map as tokens.
    """
    masks = list(masks)
    found = [layer(x, valid_cells(mask)) for layer, x, mask in zip(lateral, maps, masks, strict=True)]
    last = maps[-1]
    for layer in extra:
        # a level of n cells has (n + 1) // 2 on the next, of the image as of the padded map
        below = masks[-1]
        masks.append(None if below is None else below[:, ::2, ::2])
        last = layer(last, valid_cells(below), valid_cells(masks[-1]))
        found.append(last)
    if encoder is not None:
        x, mask = found[-1], masks[-1]
        tokens = x.flatten(2).transpose(1, 2)
        attn_mask = None if mask is None else ~mask.flatten(1)[:, None, None, :]
        tokens = encoder(tokens, position(x, mask).to(tokens.dtype), attn_mask)
        found[-1] = tokens.transpose(1, 2).reshape(x.shape)
    return found, masks


def valid_cells(mask: Tensor | None) -> Tensor | None:
    """Return 1 on the image and 0 on padding, ``[B, 1, h, w]``, of a padding mask ``[B, h, w]``."""
    return None if mask is None else (~mask)[:, None].float()


def enlarged(coarse: Tensor, fine: Tensor) -> Tensor:
    """Repeat every cell along both axes, up to the size of the finer map; more than that would be padding."""
    height, width = fine.shape[-2:]
    if torch.compiler.is_compiling():  # it cannot prove how long the slices below are
        rows, columns = (torch.arange(side, device=fine.device) // 2 for side in (height, width))
        return coarse.index_select(2, rows).index_select(3, columns)
    return functional.interpolate(coarse, scale_factor=2)[:, :, :height, :width]  # nearest; keeps channels last
