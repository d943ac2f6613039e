"""Multi-scale deformable sampling: weighted sums of points of several feature maps (arXiv:2010.04159, eq. 3).

Shapes: B images, M cells of all levels one after another (each level row by row), H heads, C features of a head,
Q queries, L levels, S points of a query and head over all levels, level by level. Cells have their centres at
half-integers (``align_corners=False``), and the map is zero outside.

On the CPU a map is a table with a row for each cell and head, and a query's sum is a bag of rows with weights.
Forward and backward take about half the time of ``grid_sample``, because what is read at a point is never written
out. Elsewhere, and in what is compiled or exported, ``grid_sample`` does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from detrkit.errors import UsageError


def deformable_sample(
    values: Tensor,
    shapes_hw: Sequence[tuple[int, int]],
    points: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    *,
    discrete: bool = False,
) -> Tensor:
    """Sum values at sampling points, each read bilinearly and multiplied by its weight.

    Everything is computed in float32, autocast or not.

    Args:
        values: ``[B, M, H, C]``, zero on padding.
        shapes_hw: Height and width of each level.
        points: Points of each level; their sum is S.
        locations: ``[B, Q, H, S, 2]``, (x, y), 0 to 1 over the level's map with its padding; may lie outside.
        weights: ``[B, Q, H, S]``.
        discrete: Read the cell that a point lies in, or the nearest of the map, instead of four around it.

    Returns:
        ``[B, Q, H * C]`` in the dtype of ``values``.

    Raises:
        UsageError: Shapes contradict each other.
    """
    _check_shapes(values, shapes_hw, points, locations, weights)
    by_rows = values.device.type == "cpu" and not torch.compiler.is_compiling()
    sample = _sample_cells if discrete else _sample_rows if by_rows else _sample_grids
    # none of the operations inside is one that autocast turns to bf16
    return sample(values.float(), shapes_hw, points, locations.float(), weights.float()).to(values.dtype)


def _sample_grids(
    values: Tensor, shapes_hw: Sequence[tuple[int, int]], points: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sample through ``grid_sample``; see :func:`deformable_sample`."""
    batch, _, heads, features = values.shape
    cells = [height * width for height, width in shapes_hw]
    maps = torch.split(values.permute(0, 2, 3, 1).flatten(0, 1), cells, dim=2)
    grids = torch.split((2 * locations - 1).transpose(1, 2).flatten(0, 1), list(points), dim=2)
    sampled = [
        functional.grid_sample(
            level.reshape(-1, features, height, width), grid, padding_mode="zeros", align_corners=False
        )
        for level, (height, width), grid in zip(maps, shapes_hw, grids, strict=True)
    ]  # each [B * H, C, Q, points]
    sums = (torch.cat(sampled, dim=3) * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(3)
    return sums.view(batch, heads * features, -1).transpose(1, 2)


def _sample_rows(
    values: Tensor, shapes_hw: Sequence[tuple[int, int]], points: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sample by bags of the rows of a table; see :func:`deformable_sample`."""
    batch, num_queries, heads, _ = weights.shape
    rows, shares = _corners(values.shape[1], shapes_hw, points, locations, weights)
    rows, shares = rows.flatten(0, 2), shares.flatten(0, 2)
    table = values.reshape(-1, values.shape[3])
    sums: Tensor = functional.embedding_bag(rows, table.detach(), mode="sum", per_sample_weights=shares)
    sums = _TableGradient.apply(sums, table, rows, shares.detach())
    return sums.view(batch, num_queries, heads * values.shape[3])


def _sample_cells(
    values: Tensor, shapes_hw: Sequence[tuple[int, int]], points: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """Read one cell a point by plain indexing; see :func:`deformable_sample`."""
    cells = [height * width for height, width in shapes_hw]
    found = []
    for level, (height, width), at in zip(
        torch.split(values, cells, dim=1), shapes_hw, torch.split(locations, list(points), dim=3), strict=True
    ):
        # (half a cell further than the one it lies in, as published)
        column = (at[..., 0] * width + 0.5).long().clamp(0, width - 1)
        row = (at[..., 1] * height + 0.5).long().clamp(0, height - 1)
        index = (row * width + column).permute(0, 2, 1, 3).flatten(2)  # [B, H, Q * points]
        rows = level.transpose(1, 2).gather(2, index[..., None].expand(-1, -1, -1, values.shape[3]))
        found.append(rows.view(*rows.shape[:2], locations.shape[1], -1, rows.shape[3]))
    read = torch.cat(found, dim=3)  # [B, H, Q, S, C]
    return (read * weights.transpose(1, 2)[..., None]).sum(3).transpose(1, 2).flatten(2)


def _corners(
    cells: int, shapes_hw: Sequence[tuple[int, int]], points: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the four cells around each point, and what each adds.

    Args:
        cells: M.
        shapes_hw: Height and width of each level.
        points: Points of each level.
        locations: ``[B, Q, H, S, 2]``.
        weights: ``[B, Q, H, S]``.

    Returns:
        Rows of the table ``[B, Q, H, 4 * S]``, and their weights, 0 for a cell outside the map.
    """
    batch, _, heads, _ = weights.shape
    device = weights.device
    level = torch.arange(len(shapes_hw), device=device).repeat_interleave(torch.tensor(points, device=device))
    sizes = torch.tensor(shapes_hw, device=device)
    starts = sizes.prod(1).cumsum(0) - sizes.prod(1)
    height, width = sizes[level].unbind(1)  # of the level of each point, [S]
    image_start = torch.arange(batch, device=device)[:, None, None, None] * cells
    first_rows = (image_start + starts[level]) * heads + torch.arange(heads, device=device)[:, None]

    columns = [(cell * heads, share) for cell, share in _neighbours(locations[..., 0], width)]
    lines = [
        (torch.addcmul(first_rows, cell, width * heads), share * weights)
        for cell, share in _neighbours(locations[..., 1], height)
    ]
    rows = torch.cat([line + column for line, _ in lines for column, _ in columns], dim=3)
    shares = torch.cat([line * column for _, line in lines for _, column in columns], dim=3)
    return rows, shares


def _neighbours(locations: Tensor, size: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Find the two cells next to a point along one axis, low and high, and their shares of it.

    A cell outside the map counts as the map's first or last one, with a share of 0.

    Args:
        locations: ``[..., S]``, 0 to 1.
        size: Cells along the axis, ``[S]``.
    """
    position = locations * size - 0.5
    floor = position.detach().floor()
    fraction = position - floor
    low = floor.long()
    neighbours = []
    for cell, share in ((low, 1 - fraction), (low + 1, fraction)):
        inside = (cell >= 0) & (cell < size)
        neighbours.append((cell.clamp(min=0).minimum(size - 1), share * inside))
    return neighbours


class _TableGradient(torch.autograd.Function):
    """Passes bags of rows through, and gives the table the gradient that they would have given it.

    Bags with their weights are a sparse matrix, and the gradient is its transpose times that of the sums. SciPy
    multiplies them in a seventh of the time of what ``embedding_bag`` does, in the same order for any number of
    threads.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor, table: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
        ctx.save_for_backward(rows, shares)
        ctx.table_rows = len(table)
        return sums.view_as(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        if not ctx.needs_input_grad[1]:
            return gradient, None, None, None
        rows, shares = ctx.saved_tensors
        starts = np.arange(0, rows.numel() + 1, rows.shape[1])
        bags = (shares.numpy().ravel(), rows.numpy().ravel(), starts)
        read = csr_array(bags, shape=(len(rows), ctx.table_rows))  # type: ignore[no-untyped-call]
        to_table = torch.from_numpy(read.T @ gradient.numpy())
        return gradient, to_table, None, None


def _check_shapes(
    values: Tensor, shapes_hw: Sequence[tuple[int, int]], points: Sequence[int], locations: Tensor, weights: Tensor
) -> None:
    """Refuse shapes that contradict each other; torch's own words would be about bags or grids."""
    if values.ndim != 4:
        raise UsageError(f"values have shape {list(values.shape)}, expected [images, cells, heads, features]")
    if len(points) != len(shapes_hw):
        raise UsageError(f"points are {list(points)}, expected one count for each of {len(shapes_hw)} levels")
    cells = sum(height * width for height, width in shapes_hw)
    if values.shape[1] != cells:
        raise UsageError(
            f"values hold {values.shape[1]} cells, expected {cells} of the levels {list(shapes_hw)}; "
            "give the levels one after another, each as (height, width)"
        )
    batch, _, heads, _ = values.shape
    queries = weights.shape[1] if weights.ndim > 1 else 0
    expected = [batch, queries, heads, sum(points)]
    if list(weights.shape) != expected:
        raise UsageError(f"weights have shape {list(weights.shape)}, expected {expected} (B, Q, heads, points)")
    if list(locations.shape) != [*expected, 2]:
        raise UsageError(f"locations have shape {list(locations.shape)}, expected {[*expected, 2]} (x, y last)")
