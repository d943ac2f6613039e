from __future__ import annotations

import pytest
import torch
from torch import nn

from detrkit.nn.backbones.resnet import ResNetBackbone, build_resnet, build_tiny, fold_norms
from detrkit.nn.norm import PaddedGroupNorm
from tests.parity.conftest import padded_batch, randomize

SIZES = [(70, 101), (97, 64)]


def build(name: str, norm: str, dilation: bool = False) -> ResNetBackbone:
    torch.manual_seed(0)
    if name == "tiny":
        return build_tiny(norm=norm).eval()
    backbone = build_resnet(name, norm=norm, dilation=dilation, frozen_stages=0, exact_padding=True).eval()
    if norm == "frozen":
        randomize(backbone)
    return backbone


@pytest.mark.parametrize(
    ("name", "norm", "dilation"),
    [
        ("resnet18", "group", False),
        ("resnet50", "frozen", True),
        ("resnet50", "batch", False),
        ("resnet50", "group", True),
        ("tiny", "group", False),
    ],
)
def test_features_do_not_depend_on_padding(name: str, norm: str, dilation: bool):
    backbone = build(name, norm, dilation)
    with torch.no_grad():
        for extra in (0, 37):
            images, mask = padded_batch(SIZES, extra)
            features, padding = backbone(images, mask)
            assert padding is not None
            for index, (height, width) in enumerate(SIZES):
                alone, none = backbone(images[index : index + 1, :, :height, :width], None)
                assert none is None
                h, w = alone.shape[-2:]
                difference = (features[index, :, :h, :w] - alone[0]).abs().max()
                # rounding through up to 50 layers, against the largest feature
                assert difference < 2e-5 * alone.abs().max()
                assert not padding[index, :h, :w].any()
                assert padding[index].sum() == padding[index].numel() - h * w


def test_folding_frozen_norms_changes_nothing():
    backbone = build("resnet50", "frozen")
    images = padded_batch([(64, 64)])[0]
    with torch.no_grad():
        before, _ = backbone(images)
        fold_norms(backbone)
        after, _ = backbone(images)
    assert isinstance(backbone.body.bn1, nn.Identity)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("frozen", "trained"), [(0, {"conv1", "layer1", "layer2"}), (2, {"layer2"})])
def test_frozen_stages_are_not_trained(frozen: int, trained: set[str]):
    backbone = build_resnet("resnet18", norm="group", dilation=False, frozen_stages=frozen, exact_padding=True)
    found = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained <= found
    assert ("conv1" in found) == (frozen == 0)


def test_group_norm_with_everything_valid_is_torchs():
    norm = PaddedGroupNorm(4, 16)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(norm(x, torch.ones(2, 1, 5, 7)), norm(x), rtol=1e-4, atol=1e-5)
