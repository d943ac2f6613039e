"""Normalisations that know about padding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d


class PaddedGroupNorm(nn.GroupNorm):
    """Group normalisation whose statistics leave padding out.

    Plain group norm averages over the whole tensor, so an image's features would depend on how much it was
    padded. Images ``[B, C, H, W]``; ``valid`` ``[B, 1, H, W]`` is 1 on the image and 0 on padding.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise; with ``valid`` None every position counts."""
        if valid is None:
            return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        channels_per_group = x.shape[1] // self.num_groups
        values = x.float()
        inside = values * valid
        size = valid.float().sum(dim=(2, 3)) * channels_per_group  # [B, 1]
        mean = _sum_groups(inside.sum(dim=(2, 3)), self.num_groups) / size
        mean_square = _sum_groups((inside * inside).sum(dim=(2, 3)), self.num_groups) / size
        rstd = ((mean_square - mean.square()).clamp(min=0) + self.eps).rsqrt()
        # one multiplication and addition per channel, instead of passes over every group
        scale = rstd.repeat_interleave(channels_per_group, dim=1) * self.weight
        shift = self.bias - mean.repeat_interleave(channels_per_group, dim=1) * scale
        return torch.addcmul(shift[:, :, None, None], values, scale[:, :, None, None]).to(x.dtype)


def group_norm(channels: int) -> nn.Module:
    """Make a group norm with groups of at least four channels, at most 32 groups."""
    counts = range(min(32, channels // 4) or 1, 0, -1)
    return PaddedGroupNorm(next(count for count in counts if channels % count == 0), channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "group": group_norm,
    "batch": nn.BatchNorm2d,
}
"""Norms by the names that configs give them, made for a number of channels."""


def folded_weight(conv: nn.Conv2d, norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that equals ``norm(conv(x))``; differentiable in the weight."""
    own = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}
    scale = own["weight"] * (own["running_var"] + norm.eps).rsqrt()
    return conv.weight * scale.view(-1, 1, 1, 1), own["bias"] - own["running_mean"] * scale


def convolve_folded(x: Tensor, conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> Tensor:
    """Return ``norm(conv(x))``, by one convolution."""
    weight, bias = folded_weight(conv, norm)
    return functional.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _sum_groups(sums: Tensor, num_groups: int) -> Tensor:
    """Sum ``[B, C]`` to ``[B, num_groups]``."""
    return sums.view(sums.shape[0], num_groups, -1).sum(dim=2)
