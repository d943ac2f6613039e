"""The hybrid encoder of RT-DETR (arXiv:2304.08069, section 4.2) and D-FINE (arXiv:2410.13842), of shared blocks.

Attention inside the coarsest level, then a way down and a way up between levels, each step a fusion of two maps.
Blocks are several convolutions side by side in training (RepVGG, arXiv:2101.03697) that are one for detection.

Shapes: B images, D features, h x w cells of a level. Levels go from fine to coarse. ``valid`` is 1 on the image
and 0 on padding, ``[B, 1, h, w]``, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from detrkit.nn.pyramid import ConvNorm, enlarged, project_levels, valid_cells
from detrkit.nn.transformer import Encoder


class RepBlock(nn.Module):
    """A 3 x 3 and a 1 x 1 convolution side by side, which :meth:`fuse` makes one."""

    def __init__(self, dim: int, norm: str):
        super().__init__()
        self.conv1 = ConvNorm(dim, dim, 3, norm=norm, act="")
        self.conv2: ConvNorm | None = ConvNorm(dim, dim, 1, norm=norm, act="")

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Apply to ``[B, C, h, w]``."""
        y = self.conv1(x, valid)
        if self.conv2 is not None:
            y = y + self.conv2(x, valid)
        return functional.silu(y, inplace=not y.requires_grad)

    @torch.no_grad()
    def fuse(self) -> None:
        """Make both one convolution, in place, once their norms are folded into them."""
        if self.conv2 is None or not isinstance(self.conv1.norm, nn.Identity):
            return
        small, large = self.conv2.conv, self.conv1.conv
        assert small.bias is not None
        assert large.bias is not None
        large.weight += functional.pad(small.weight, (1, 1, 1, 1))
        large.bias += small.bias
        self.conv2 = None


class CspRep(nn.Module):
    """Two branches, one of them through RepVGG blocks, added (CSPNet, arXiv:1911.11929).

    Args:
        channels: Of the input.
        dim: Of the output.
        blocks: RepVGG blocks.
        hidden: Channels inside.
        norm: As for backbones.
    """

    def __init__(self, channels: int, dim: int, blocks: int, hidden: int, norm: str):
        super().__init__()
        self.conv1 = ConvNorm(channels, hidden, 1, norm=norm, act="silu")
        self.conv2 = ConvNorm(channels, hidden, 1, norm=norm, act="silu")
        self.bottlenecks = nn.ModuleList(RepBlock(hidden, norm) for _ in range(blocks))
        self.conv3 = ConvNorm(hidden, dim, 1, norm=norm, act="silu") if hidden != dim else None

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Apply to ``[B, C, h, w]``."""
        y = self.conv1(x, valid)
        for block in self.bottlenecks:
            y = block(y, valid)
        y = y + self.conv2(x, valid)
        return y if self.conv3 is None else self.conv3(y, valid)  # type: ignore[no-any-return]


class RepElan(nn.Module):
    """Two fusions one after another, of whose outputs a convolution makes one (GELAN, arXiv:2402.13616).

    Args:
        dim: Features D; the input has twice as many.
        hidden: Channels inside.
        blocks: RepVGG blocks of each fusion.
        norm: As for backbones.
    """

    def __init__(self, dim: int, hidden: int, blocks: int, norm: str):
        super().__init__()
        self.conv1 = ConvNorm(2 * dim, 2 * dim, 1, norm=norm, act="silu")
        self.csp_rep1 = CspRep(dim, hidden, blocks, hidden, norm)
        self.conv2 = ConvNorm(hidden, hidden, 3, norm=norm, act="silu")
        self.csp_rep2 = CspRep(hidden, hidden, blocks, hidden, norm)
        self.conv3 = ConvNorm(hidden, hidden, 3, norm=norm, act="silu")
        self.conv4 = ConvNorm(2 * (dim + hidden), dim, 1, norm=norm, act="silu")

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Turn ``[B, 2 * D, h, w]`` to ``[B, D, h, w]``."""
        x = self.conv1(x, valid)
        first = self.conv2(self.csp_rep1(x.chunk(2, dim=1)[1], valid), valid)
        second = self.conv3(self.csp_rep2(first, valid), valid)
        return self.conv4(torch.cat((x, first, second), dim=1), valid)  # type: ignore[no-any-return]


class HybridEncoder(nn.Module):
    """Mixes feature maps of several strides, each half the size of the one before.

    Args:
        channels: Of the backbone's maps, fine to coarse.
        dim: Features D.
        encoder: Self-attention on the coarsest level; None = none.
        fuse: Makes the module that fuses two maps, ``[B, 2 * D, h, w]`` to ``[B, D, h, w]``.
        reduce: Makes the module that halves a map.
        extra_levels: Further levels that begin with a strided convolution of the last map.
        norm: As for backbones.
        lateral_act: Activation of what goes down.
        out_dim: Features of what comes out, if not D.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        encoder: Encoder | None,
        fuse: Callable[[], nn.Module],
        reduce: Callable[[], nn.Module],
        *,
        extra_levels: int = 0,
        norm: str,
        lateral_act: str = "silu",
        out_dim: int | None = None,
    ):
        super().__init__()
        steps = len(channels) + extra_levels - 1
        self.input_proj = nn.ModuleList(ConvNorm(count, dim, 1, norm=norm, act="") for count in channels)
        self.extra = nn.ModuleList(
            ConvNorm(channels[-1] if number == 0 else dim, dim, 3, 2, norm=norm, act="")
            for number in range(extra_levels)
        )
        self.encoder = encoder
        self.lateral_convs = nn.ModuleList(ConvNorm(dim, dim, 1, norm=norm, act=lateral_act) for _ in range(steps))
        self.fpn_blocks = nn.ModuleList(fuse() for _ in range(steps))
        self.downsample_convs = nn.ModuleList(reduce() for _ in range(steps))
        self.pan_blocks = nn.ModuleList(fuse() for _ in range(steps))
        self.output_proj = nn.ModuleList(
            ConvNorm(dim, out_dim, 1, norm=norm, act="") for _ in range(steps + 1) if out_dim is not None
        )

    def forward(
        self, maps: Sequence[Tensor], masks: Sequence[Tensor | None], position: nn.Module
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Mix; as :meth:`detrkit.nn.pyramid.FeaturePyramid.forward`."""
        mixed, masks = project_levels(self.input_proj, self.extra, maps, masks, self.encoder, position)
        valid = [valid_cells(mask) for mask in masks]
        # down: what goes on upward is the coarse map behind its lateral convolution
        last = len(mixed) - 1
        for step, (lateral, fuse) in enumerate(zip(self.lateral_convs, self.fpn_blocks, strict=True)):
            level = last - step
            mixed[level] = lateral(mixed[level], valid[level])
            both = torch.cat((enlarged(mixed[level], mixed[level - 1]), mixed[level - 1]), dim=1)
            mixed[level - 1] = fuse(both, valid[level - 1])
        for level, (reduce, fuse) in enumerate(zip(self.downsample_convs, self.pan_blocks, strict=True)):
            smaller = reduce(mixed[level], valid[level], valid[level + 1])
            mixed[level + 1] = fuse(torch.cat((smaller, mixed[level + 1]), dim=1), valid[level + 1])
        if self.output_proj:
            mixed = [layer(x, inside) for layer, x, inside in zip(self.output_proj, mixed, valid, strict=True)]
        return mixed, masks
