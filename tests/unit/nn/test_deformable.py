from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detrkit.errors import UsageError
from detrkit.nn.deformable import DeformableAttention, valid_shares

SHAPES = [(4, 6), (2, 3)]
WIDER = [(6, 10), (3, 5)]
CELLS = 30


def make_attention(num_points: int | tuple[int, ...] = (3, 2), seed: int = 0) -> DeformableAttention:
    """Attention whose queries matter, as they do after training."""
    torch.manual_seed(seed)
    attention = DeformableAttention(16, 4, 2, num_points)
    nn.init.normal_(attention.sampling_offsets.weight, std=0.3)
    nn.init.normal_(attention.attention_weights.weight, std=0.3)
    nn.init.normal_(attention.value_proj.bias)  # so that padding would be felt
    return attention


def make_inputs(images: int = 1, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, boxes of which some reach out of the image, and values."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(images, 9, 16, generator=generator)
    references = torch.rand(images, 9, 4, generator=generator)
    return queries, references, torch.randn(images, CELLS, 16, generator=generator)


def pad(values: Tensor, filler: float) -> tuple[Tensor, Tensor]:
    """The same maps at the top left of wider ones, and the mask of what is padding."""
    levels, masks = [], []
    for level, (height, width), (new_height, new_width) in zip(
        values.split([24, 6], dim=1), SHAPES, WIDER, strict=True
    ):
        wide = torch.full((len(values), new_height, new_width, 16), filler)
        wide[:, :height, :width] = level.unflatten(1, (height, width))
        mask = torch.ones(len(values), new_height, new_width, dtype=torch.bool)
        mask[:, :height, :width] = False
        levels.append(wide.flatten(1, 2))
        masks.append(mask.flatten(1))
    return torch.cat(levels, dim=1), torch.cat(masks, dim=1)


@pytest.mark.parametrize("share_counted_before", [False, True])
def test_an_image_gives_the_same_alone_and_padded_in_a_batch(share_counted_before: bool):
    attention = make_attention()
    queries, references, values = make_inputs()
    alone = attention(queries, references, values, SHAPES)
    padded, mask = pad(values, filler=7.0)
    others = torch.randn(1, 75, 16)
    batch, masks = torch.cat((others, padded)), torch.cat((torch.zeros_like(mask), mask))
    shares = valid_shares(masks, WIDER) if share_counted_before else None
    got = attention(queries.expand(2, -1, -1), references.expand(2, -1, -1), batch, WIDER, masks, shares)
    torch.testing.assert_close(got[1:], alone, rtol=1e-5, atol=1e-5)
    assert (got[0] - alone[0]).abs().max() > 0.1


def test_gradients_are_the_same_alone_and_padded():
    attention = make_attention()
    queries, references, values = make_inputs()
    padded, mask = pad(values, filler=7.0)
    found = []
    for one_values, shapes, one_mask in ((values, SHAPES, None), (padded, WIDER, mask)):
        attention.zero_grad()
        leaves = [part.clone().requires_grad_() for part in (queries, references)]
        attention(*leaves, one_values, shapes, one_mask).square().sum().backward()
        found.append([leaf.grad for leaf in leaves] + [part.grad.clone() for part in attention.parameters()])
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_image_without_a_single_valid_cell_gives_finite_outputs():
    attention = make_attention()
    queries, references, values = make_inputs()
    got = attention(queries, references, values, SHAPES, torch.ones(1, CELLS, dtype=torch.bool))
    torch.testing.assert_close(got, attention.output_proj.bias.expand_as(got))


def test_bf16_autocast_stays_close_to_float32_and_learns():
    attention = make_attention()
    inputs = make_inputs(images=2)
    expected = attention(*inputs, SHAPES)
    with torch.autocast("cpu", torch.bfloat16):
        got = attention(*inputs, SHAPES)
        got.float().square().mean().backward()
    assert got.dtype == torch.bfloat16
    # bf16 keeps 8 bits; offsets round as well, which moves points by up to 1 % of a box
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


class Caller(nn.Module):
    """A model that reads the shapes of its maps from the maps, as a family does."""

    def __init__(self):
        super().__init__()
        self.attention = make_attention()

    def forward(self, fine: Tensor, coarse: Tensor, masks: Tensor, queries: Tensor, references: Tensor) -> Tensor:
        maps = [fine, coarse]
        shapes = [(level.shape[2], level.shape[3]) for level in maps]
        values = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        result: Tensor = self.attention(queries, references, values, shapes, masks, valid_shares(masks, shapes))
        return result


@pytest.mark.slow
def test_an_exported_graph_gives_the_same_for_other_sizes():
    def inputs(images: int, height: int, width: int) -> tuple[Tensor, ...]:
        queries, references, _ = make_inputs(images)
        maps = [torch.randn(images, 16, height * scale, width * scale) for scale in (2, 1)]
        masks = [torch.zeros(images, *level.shape[2:], dtype=torch.bool) for level in maps]
        masks[0][-1, :, 4:] = True
        masks[1][-1, :, 2:] = True
        return (*maps, torch.cat([mask.flatten(1) for mask in masks], dim=1), queries, references)

    caller = Caller().eval()
    auto = torch.export.Dim.AUTO
    dynamic = ({0: auto, 2: auto, 3: auto}, {0: auto, 2: auto, 3: auto}, {0: auto, 1: auto}, {0: auto}, {0: auto})
    exported = torch.export.export(caller, inputs(2, 3, 4), dynamic_shapes=dynamic)
    operators = {str(node.target) for node in exported.graph.nodes}
    assert any("grid_sample" in name for name in operators)
    assert not any("embedding_bag" in name for name in operators)
    for sizes in ((2, 3, 4), (3, 5, 6)):
        batch = inputs(*sizes)
        torch.testing.assert_close(exported.module()(*batch), caller(*batch), rtol=1e-5, atol=1e-5)


def test_numbers_that_contradict_each_other_are_said():
    with pytest.raises(UsageError, match="16 features do not divide into 3 heads"):
        DeformableAttention(16, 3, 2, 4)
    with pytest.raises(UsageError, match=r"num_points is \[4, 2, 4\], expected at least 1, for each of 2 levels"):
        DeformableAttention(16, 4, 2, [4, 2, 4])
    attention = make_attention()
    queries, references, values = make_inputs()
    with pytest.raises(UsageError, match=r"references_cxcywh have shape \[1, 9, 2\], expected \[1, 9, 4\]"):
        attention(queries, references[..., :2], values, SHAPES)
    with pytest.raises(UsageError, match=r"padding_mask has shape \[1, 24\], expected \[1, 30\]"):
        attention(queries, references, values, SHAPES, torch.zeros(1, 24, dtype=torch.bool))
    with pytest.raises(UsageError, match="padding_mask holds 30 cells, expected 75"):
        valid_shares(torch.zeros(1, 30, dtype=torch.bool), WIDER)
