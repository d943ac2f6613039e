"""ResNet backbones: torchvision builds them, this page runs them.

The forward is ours for two reasons. A frozen batch norm is one multiplication and one addition per channel, so
it is folded into the convolution before it, which saves two passes over every activation. And padding is kept
at zero in front of every layer that looks at neighbours, so that an image inside a padded batch gets the
features it would get alone (with torchvision's forward, biases leak in from the padding).

Shapes: B images, H x W pixels, C channels of the last stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from detrkit.nn.norm import NORMS, PaddedGroupNorm, convolve_folded, folded_weight
from detrkit.nn.recompute import Recomputing, run_part


class ResNetBackbone(Recomputing):
    """Runs a ResNet: a stem ``conv1``, ``bn1``, ``maxpool``, then stages ``layer1``, ``layer2``, ... of blocks.

    Every strided layer must map a size n to ceil(n / 2), as all of torchvision's do.

    Args:
        body: A torchvision ResNet without its classifier, or anything with the same parts.
        frozen_stages: How many stages are not trained, the stem counting as the first.
        exact_padding: Keep padding at zero inside the network; False repeats the published code.
    """

    def __init__(self, body: nn.Module, *, frozen_stages: int = 0, exact_padding: bool = True):
        super().__init__()
        self.body = body
        self.exact_padding = exact_padding
        stem = nn.ModuleList((body.conv1, body.bn1))  # type: ignore[arg-type]
        for stage in [stem, *self._stages()][:frozen_stages]:
            stage.requires_grad_(False)

    def _stages(self) -> list[nn.Sequential]:
        names = (f"layer{number}" for number in range(1, 5))
        return [getattr(self.body, name) for name in names if hasattr(self.body, name)]

    @property
    def channels(self) -> list[int]:
        """Channels of every stage, fine to coarse."""
        blocks: list[Any] = [stage[-1] for stage in self._stages()]
        return [(block.conv3 if isinstance(block, Bottleneck) else block.conv2).out_channels for block in blocks]

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Compute features of the last stage.

        Args:
            images: Normalised float ``[B, 3, H, W]``, zero on padding.
            padding_mask: bool ``[B, H, W]``, True = padding; None = no padding anywhere, which is faster.

        Returns:
            Features ``[B, C, H / stride, W / stride]``, rounded up (what lies on padding is undefined), and
            their padding mask, or None where the input had none.
        """
        (last,) = self.pyramid(images, padding_mask, 1)
        return last

    def pyramid(
        self, images: Tensor, padding_mask: Tensor | None, levels: int
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Compute features of the last stages, fine to coarse; see :meth:`forward`."""
        exact = padding_mask is not None and self.exact_padding
        valid = ValidRegion(padding_mask, images.dtype) if exact else None
        body: Any = self.body
        x, stride = images, 1
        for conv, norm in _stem(body):
            stride *= _stride(conv)
            x = _masked(_relu(_conv_norm(x, conv, norm, valid, stride)), valid, stride)
        x = body.maxpool(x)
        stride *= _stride(body.maxpool)
        stages = self._stages()
        found: list[tuple[Tensor, Tensor | None]] = []
        for number, stage in enumerate(stages):
            for block in stage:
                x = run_part(self, block, _run_block, block, x, valid, stride)
                stride *= _stride(block.conv1) * _stride(block.conv2)
            if len(stages) - number <= levels:
                found.append((x, shrunk_mask(x, padding_mask, valid, stride)))
        return found


def shrunk_mask(x: Tensor, padding_mask: Tensor | None, valid: ValidRegion | None, stride: int) -> Tensor | None:
    """Return the padding mask of a feature map."""
    if padding_mask is None:
        return None
    if valid is not None:
        return valid.at(stride, x)[:, 0] == 0
    # the published code shrinks the pixel mask by nearest neighbour, which can take one row or column
    # behind the image for valid
    small = functional.interpolate(padding_mask[:, None].float(), size=x.shape[-2:])
    return small[:, 0].bool()


class ValidRegion:
    """Where the images of a padded batch lie, at any stride of the network.

    An image of n rows alone would have ceil(n / stride) rows of features; those are the valid ones.
    """

    def __init__(self, padding_mask: Tensor | None, dtype: torch.dtype):
        assert padding_mask is not None
        self._heights = (~padding_mask[:, :, 0]).sum(1, keepdim=True)
        self._widths = (~padding_mask[:, 0, :]).sum(1, keepdim=True)
        self._dtype = dtype
        self._by_stride: dict[int, Tensor] = {}

    def at(self, stride: int, x: Tensor) -> Tensor:
        """Return 1 on images and 0 on padding of a map, ``[B, 1, ceil(H / stride), ceil(W / stride)]``."""
        if stride not in self._by_stride:
            height, width = x.shape[-2:]  # not computed: an export would have to prove that both are the same
            device = self._heights.device
            rows = torch.arange(height, device=device) < (self._heights + stride - 1) // stride
            columns = torch.arange(width, device=device) < (self._widths + stride - 1) // stride
            inside = rows[:, None, :, None] & columns[:, None, None, :]
            self._by_stride[stride] = inside.to(self._dtype)
        return self._by_stride[stride]


def _stride(layer: Any) -> int:
    stride = getattr(layer, "stride", 1)
    return int(stride[0] if isinstance(stride, tuple) else stride)


def _masked(x: Tensor, valid: ValidRegion | None, stride: int) -> Tensor:
    return x if valid is None else x * valid.at(stride, x).to(x.dtype)


def _conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module, valid: ValidRegion | None, stride: int) -> Tensor:
    """Apply convolution and normalisation; ``stride`` is that of the output against the pixels."""
    if isinstance(norm, FrozenBatchNorm2d):
        return convolve_folded(x, conv, norm)
    x = conv(x)
    if isinstance(norm, PaddedGroupNorm):
        return norm(x, None if valid is None else valid.at(stride, x))  # type: ignore[no-any-return]
    return norm(x)  # type: ignore[no-any-return]


def _run_block(block: Any, x: Tensor, valid: ValidRegion | None, stride: int) -> Tensor:
    """Run one residual block; ``stride`` is that of ``x`` against the pixels."""
    middle = stride * _stride(block.conv1)
    out = middle * _stride(block.conv2)
    if isinstance(block, Bottleneck):  # the two outer convolutions see one pixel and need no clean padding
        y = _relu(_conv_norm(x, block.conv1, block.bn1, valid, middle))
        y = _relu(_conv_norm(_masked(y, valid, middle), block.conv2, block.bn2, valid, out))
        y = _conv_norm(y, block.conv3, block.bn3, valid, out)
    else:
        y = _relu(_conv_norm(_masked(x, valid, stride), block.conv1, block.bn1, valid, middle))
        y = _conv_norm(_masked(y, valid, middle), block.conv2, block.bn2, valid, out)
    if block.downsample is not None:
        *pool, conv, norm = block.downsample
        if pool:
            x = _averaged(x, pool[0], valid, stride)
        x = _conv_norm(x, conv, norm, valid, out)
    return _relu(y.add_(x))


def _averaged(x: Tensor, pool: nn.Module, valid: ValidRegion | None, stride: int) -> Tensor:
    """Average neighbours, those on padding left out as those beyond the map are."""
    if valid is None:
        return pool(x)  # type: ignore[no-any-return]
    share = pool(valid.at(stride, x).to(x.dtype))
    return pool(_masked(x, valid, stride)) / share.clamp(min=0.25)  # type: ignore[no-any-return]


def _stem(body: Any) -> list[tuple[nn.Conv2d, nn.Module]]:
    """Return convolutions and norms in front of the first stage: one pair, or three in a ResNet-D."""
    layers = [*body.conv1, body.bn1] if isinstance(body.conv1, nn.Sequential) else [body.conv1, body.bn1]
    return list(zip(layers[::2], layers[1::2], strict=True))


def _relu(x: Tensor) -> Tensor:
    """Apply ReLU in place: what convolutions and norms give out is read by nobody else, gradients included."""
    return functional.relu(x, inplace=True)


def fold_norms(backbone: ResNetBackbone) -> None:
    """Fold every batch norm into its convolution for good, in place; for inference only.

    The state dict no longer has the published names afterwards.
    """
    leaves = [name for name, module in backbone.body.named_modules() if not [*module.children()]]
    for conv_name, norm_name in itertools.pairwise(leaves):  # every norm was added right behind its convolution
        fold_norm(backbone.body, conv_name, norm_name)


def fold_norm(parent: nn.Module, conv_name: str, norm_name: str) -> None:
    """Fold a batch norm, if it is one, into the convolution before it, in place."""
    conv: Any = parent.get_submodule(conv_name)
    norm = parent.get_submodule(norm_name)
    if isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
        with torch.no_grad():
            weight, bias = folded_weight(conv, norm)
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = nn.Parameter(bias, requires_grad=False)
        parent.set_submodule(norm_name, nn.Identity())


def build_resnet(
    name: str, *, norm: str, dilation: bool, frozen_stages: int, exact_padding: bool
) -> ResNetBackbone:
    """Build a ResNet of torchvision with random weights.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50`` or ``resnet101``; with ``vd`` behind it, a ResNet-D.
        norm: ``frozen`` batch norm (for pretrained weights), ``group`` or ``batch`` (trainable).
        dilation: DC5: the last stage is dilated instead of strided (Bottleneck ResNets only).
        frozen_stages: See :class:`ResNetBackbone`.
        exact_padding: See :class:`ResNetBackbone`.
    """
    body = getattr(torchvision.models, name.removesuffix("vd"))(
        weights=None, norm_layer=NORMS[norm], replace_stride_with_dilation=(False, False, dilation)
    )
    del body.fc, body.avgpool
    if name.endswith("vd"):
        _make_resnet_d(body, NORMS[norm])
    return ResNetBackbone(body, frozen_stages=frozen_stages, exact_padding=exact_padding)


def _make_resnet_d(body: Any, norm: Callable[[int], nn.Module]) -> None:
    """Give a ResNet the stem and the shortcuts of ResNet-D (arXiv:1812.01187, section 4.2), in place."""
    widths = (3, 32, 32, 64)
    stem: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        stem += [nn.Conv2d(before, after, 3, 1 if number else 2, 1, bias=False), norm(after)]
    body.conv1 = nn.Sequential(*stem[:-1])
    shortcuts = [body.conv1]
    for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
        first = stage[0]
        channels = first.conv1.in_channels, (getattr(first, "conv3", None) or first.conv2).out_channels
        pool = [nn.AvgPool2d(2, 2, ceil_mode=True)] if _stride(first.conv1) * _stride(first.conv2) == 2 else []
        first.downsample = nn.Sequential(*pool, nn.Conv2d(*channels, 1, bias=False), norm(channels[1]))
        shortcuts.append(first.downsample)
    for conv in (module for part in shortcuts for module in part.modules() if isinstance(module, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def build_tiny(
    widths: tuple[int, ...] = (16, 32, 64, 128), *, norm: str = "group", exact_padding: bool = True
) -> ResNetBackbone:
    """Build a small ResNet of torchvision's basic blocks, one a stage, every stage strided: stride 16 by default.

    Args:
        widths: Channels of the stem and of each stage.
        norm: As in :func:`build_resnet`.
        exact_padding: See :class:`ResNetBackbone`.
    """
    norm_layer = NORMS[norm]
    body = nn.Module()
    body.conv1 = nn.Conv2d(3, widths[0], kernel_size=3, stride=2, padding=1, bias=False)
    body.bn1 = norm_layer(widths[0])
    body.maxpool = nn.Identity()
    before = widths[0]
    for number, width in enumerate(widths[1:], start=1):
        downsample = nn.Sequential(nn.Conv2d(before, width, 1, stride=2, bias=False), norm_layer(width))
        block = BasicBlock(before, width, 2, downsample, norm_layer=norm_layer)
        setattr(body, f"layer{number}", nn.Sequential(block))
        before = width
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return ResNetBackbone(body, exact_padding=exact_padding)
