from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from detrkit.errors import UsageError
from detrkit.ops.deformable import deformable_sample

SHAPES = [(5, 7), (3, 4), (1, 2)]
POINTS = [4, 1, 2]


@pytest.fixture(params=["rows", "grids", "exact"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All ways to compute it: for training on a CPU, for GPUs and exports, for deterministic GPUs."""
    if request.param == "grids":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    if request.param == "exact":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    return str(request.param)


def make_inputs(
    images: int = 2, queries: int = 6, heads: int = 3, features: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations (a good part of them outside the maps) and weights."""
    generator = torch.Generator().manual_seed(seed)
    cells, points = sum(h * w for h, w in SHAPES), sum(POINTS)
    values = torch.randn(images, cells, heads, features, generator=generator)
    locations = torch.rand(images, queries, heads, points, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(images, queries, heads, points, generator=generator)
    return values, locations, weights


def plain_sample(
    values: Tensor, shapes_hw: Sequence[tuple[int, int]], points: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """Every cell of a level times its tent function at the point (arXiv:1703.06211, equations 3 and 4)."""
    total = torch.zeros(())
    cell, point = 0, 0
    for (height, width), count in zip(shapes_hw, points, strict=True):
        here = slice(point, point + count)
        x = locations[:, :, :, here, 0, None] * width - 0.5 - torch.arange(width)
        y = locations[:, :, :, here, 1, None] * height - 0.5 - torch.arange(height)
        tent_x, tent_y = (1 - x.abs()).clamp(min=0), (1 - y.abs()).clamp(min=0)
        level = values[:, cell : cell + height * width].unflatten(1, (height, width))
        total = total + torch.einsum("bqhs,bqhsy,bqhsx,byxhc->bqhc", weights[..., here], tent_y, tent_x, level)
        cell, point = cell + height * width, point + count
    return total.flatten(2)


@pytest.mark.usefixtures("way")
def test_sums_and_gradients_are_those_of_the_plain_formula():
    inputs = make_inputs()
    mine, theirs = ([part.clone().requires_grad_() for part in inputs] for _ in range(2))
    got = deformable_sample(mine[0], SHAPES, POINTS, mine[1], mine[2])
    expected = plain_sample(theirs[0], SHAPES, POINTS, theirs[1], theirs[2])
    assert got.shape == (2, 6, 24)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)  # sums in another order
    upper = torch.randn(got.shape, generator=torch.Generator().manual_seed(9))
    got.backward(upper)
    expected.backward(upper)
    for one, other in zip(mine, theirs, strict=True):
        assert other.grad is not None
        assert other.grad.abs().max() > 0.1
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("way")
def test_cells_have_their_centres_at_half_integers_and_are_zero_outside():
    values = torch.tensor([1.0, 2, 3, 4, 5, 6]).view(1, 6, 1, 1)  # 2 high, 3 wide
    places = torch.tensor(
        [[0.5, 0.25], [5 / 6, 0.75], [0.5, 0.5], [0.0, 0.25], [0.5, 1.0], [-1 / 6, 0.25], [2, 2]]
    )
    got = deformable_sample(values, [(2, 3)], [1], places.view(1, 7, 1, 1, 2), torch.ones(1, 7, 1, 1))
    expected = torch.tensor([2, 6, 3.5, 0.5, 2.5, 0, 0])
    torch.testing.assert_close(got.flatten(), expected, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("way")
def test_points_far_outside_give_zero_and_learn_nothing():
    values, _, weights = make_inputs()
    locations = torch.full((*weights.shape, 2), 1e12)
    locations[..., 0] = -1e12
    locations.requires_grad_()
    got = deformable_sample(values.requires_grad_(), SHAPES, POINTS, locations, weights)
    got.sum().backward()
    assert not got.any()
    assert locations.grad is not None
    assert not locations.grad.any()


@pytest.mark.usefixtures("way")
def test_bf16_comes_out_as_bf16_and_is_computed_in_float32():
    values, locations, weights = make_inputs()
    low = values.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = deformable_sample(low, SHAPES, POINTS, locations, weights)
    expected = deformable_sample(low.float(), SHAPES, POINTS, locations, weights)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected.bfloat16())
    got.sum().backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_gradients_do_not_depend_on_the_number_of_threads():
    inputs = make_inputs(images=4, queries=200)
    gradients = []
    for count in (1, 3):
        torch.set_num_threads(count)
        parts = [part.clone().requires_grad_() for part in inputs]
        deformable_sample(parts[0], SHAPES, POINTS, parts[1], parts[2]).square().sum().backward()
        gradients.append([part.grad for part in parts])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_shapes_that_contradict_each_other_are_said():
    values, locations, weights = make_inputs()
    with pytest.raises(UsageError, match=r"have shape \[2, 49, 3, 8\] .* expected \[images, 48 cells"):
        deformable_sample(values, [(5, 7), (3, 4), (1, 1)], POINTS, locations, weights)
    with pytest.raises(UsageError, match=r"points are \[4, 3\], expected .* one count for each of 3 levels"):
        deformable_sample(values, SHAPES, [4, 3], locations, weights)
    with pytest.raises(UsageError, match=r"locations have shape \[2, 5, 3, 7, 2\].* expected \[2, 6, 3, 7, 2\]"):
        deformable_sample(values, SHAPES, POINTS, locations[:, :5], weights)
    with pytest.raises(UsageError, match=r"values have shape \[2, 49, 24\] .* expected \[images, 49 cells"):
        deformable_sample(values.flatten(2), SHAPES, POINTS, locations, weights)
