"""Deformable attention against three independent ones of Hugging Face transformers, float32, the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrkit.nn.deformable import DeformableAttention, valid_shares

# levels, points, images, queries
CASES = [
    ([(6, 8), (3, 4), (2, 2)], 4, 2, 11),
    ([(5, 7), (2, 3)], 1, 1, 3),
    ([(1, 9), (4, 1), (3, 3), (2, 5)], 3, 3, 6),
]
DIM, HEADS = 32, 8


def randomize(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.4, generator=generator)


def make_theirs(family: str, levels: int, points: Any) -> nn.Module:
    from transformers import DeformableDetrConfig, DFineConfig, RTDetrV2Config
    from transformers.models.d_fine import modeling_d_fine
    from transformers.models.deformable_detr import modeling_deformable_detr
    from transformers.models.rt_detr_v2 import modeling_rt_detr_v2

    theirs: nn.Module
    if family == "deformable":
        config = DeformableDetrConfig(d_model=DIM, num_feature_levels=levels)
        theirs = modeling_deformable_detr.DeformableDetrMultiscaleDeformableAttention(config, HEADS, points)
    else:
        kind = RTDetrV2Config if family == "rtdetrv2" else DFineConfig
        # RT-DETRv2 and D-FINE each read their own name for the levels; a config keeps both
        config = kind(
            d_model=DIM,
            decoder_attention_heads=HEADS,
            decoder_n_levels=levels,
            num_feature_levels=levels,
            decoder_n_points=points,
        )
        theirs = (
            modeling_rt_detr_v2.RTDetrV2MultiscaleDeformableAttention(config)
            if family == "rtdetrv2"
            else modeling_d_fine.DFineMultiscaleDeformableAttention(config)
        )
    randomize(theirs)
    return theirs


def run_theirs(
    theirs: nn.Module,
    queries: Tensor,
    references: Tensor,
    values: Tensor,
    shapes: Any,
    valid: Tensor | None = None,
) -> Tensor:
    result: Tensor = theirs(
        hidden_states=queries,
        attention_mask=valid,
        encoder_hidden_states=values,
        reference_points=references,
        spatial_shapes=torch.tensor(shapes),
        spatial_shapes_list=shapes,
        level_start_index=None,
    )[0]
    return result


def make_inputs(shapes: list[tuple[int, int]], images: int, queries: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(images, queries, DIM, generator=generator),
        torch.rand(images, queries, 4, generator=generator),
        torch.randn(images, sum(h * w for h, w in shapes), DIM, generator=generator),
    ]


def assert_same_gradients(got: Tensor, expected: Tensor, mine: list[Tensor], theirs: list[Tensor]) -> None:
    upper = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    for one, other in zip(
        torch.autograd.grad(got, mine, upper), torch.autograd.grad(expected, theirs, upper), strict=True
    ):
        assert other.abs().max() > 1e-2  # the comparison is of something
        # float32; a gradient is a sum of hundreds of terms, added up in another order
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_parameters_start_as_transformers():
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrPreTrainedModel

    theirs = make_theirs("deformable", 3, 4)
    with torch.no_grad():
        DeformableDetrPreTrainedModel(DeformableDetrConfig(d_model=DIM))._init_weights(theirs)
    ours = DeformableAttention(DIM, HEADS, 3, 4).state_dict()
    for name, expected in theirs.state_dict().items():
        if name in ("value_proj.weight", "output_proj.weight"):  # drawn
            bound = (6 / (2 * DIM)) ** 0.5
            assert 0.9 * bound < ours[name].abs().max() <= bound
        else:
            torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=["three-levels", "one-point", "thin-levels"])
@pytest.mark.parametrize("family", ["deformable", "rtdetrv2"])
def test_outputs_and_gradients_equal_transformers(family: str, case: Any):
    shapes, points, images, count = case
    theirs = make_theirs(family, len(shapes), points)
    ours = DeformableAttention(DIM, HEADS, len(shapes), points)
    parameters = {name: part for name, part in theirs.state_dict().items() if name != "n_points_scale"}
    ours.load_state_dict(parameters)
    inputs = make_inputs(shapes, images, count)
    mine, yours = ([part.clone().requires_grad_() for part in inputs] for _ in range(2))
    got = ours(*mine, shapes)
    levels = len(shapes) if family == "deformable" else 1  # one box for all levels
    expected = run_theirs(theirs, yours[0], yours[1][:, :, None].expand(-1, -1, levels, -1), yours[2], shapes)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    named = dict(theirs.named_parameters())
    assert_same_gradients(
        got, expected, [*mine, *ours.parameters()], [*yours, *(named[name] for name, _ in ours.named_parameters())]
    )


def test_levels_with_different_points_equal_d_fine():
    shapes, points = [(6, 8), (3, 4), (2, 2)], [3, 6, 2]
    theirs = make_theirs("dfine", 3, points)
    ours = DeformableAttention(DIM, HEADS, 3, points)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    # D-FINE has no projections of its own around the sampling
    for projection in (ours.value_proj, ours.output_proj):
        nn.init.eye_(projection.weight)
        nn.init.zeros_(projection.bias)
    inputs = make_inputs(shapes, 2, 7)
    mine, yours = ([part.clone().requires_grad_() for part in inputs] for _ in range(2))
    got = ours(*mine, shapes)
    expected = run_theirs(theirs, yours[0], yours[1][:, :, None], yours[2], shapes)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert_same_gradients(got, expected, mine, yours)


def test_padding_equals_deformable_detrs_valid_ratios():
    shapes = [(6, 8), (3, 4)]
    theirs = make_theirs("deformable", 2, 4)
    ours = DeformableAttention(DIM, HEADS, 2, 4)
    ours.load_state_dict(theirs.state_dict())
    queries, references, values = make_inputs(shapes, 2, 9)
    masks = [torch.zeros(2, height, width, dtype=torch.bool) for height, width in shapes]
    masks[0][1, 4:], masks[0][1, :, 6:] = True, True
    masks[1][1, 2:], masks[1][1, :, 3:] = True, True
    padding_mask = torch.cat([mask.flatten(1) for mask in masks], dim=1)
    ratios = torch.tensor([[[1, 1], [1, 1]], [[6 / 8, 4 / 6], [3 / 4, 2 / 3]]])
    torch.testing.assert_close(valid_shares(padding_mask, shapes), ratios)
    placed = references[:, :, None] * torch.cat((ratios, ratios), dim=2)[:, None]
    expected = run_theirs(theirs, queries, placed, values, shapes, ~padding_mask)
    got = ours(queries, references, values, shapes, padding_mask)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
