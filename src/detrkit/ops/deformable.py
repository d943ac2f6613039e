"""Multi-scale deformable sampling: weighted sums of points of several feature maps (arXiv:2010.04159, eq. 3).

Shapes: B images, M cells of all levels one after another (each level row by row), H heads, C features of a head,
Q queries, L levels, S points of a query and head over all levels, level by level. Cells have their centres at
half-integers (``align_corners=False``), and the map is zero outside.

On the CPU a map is a table with a row for each cell and head, and a query's sum is a bag of rows with weights.
Forward and backward take about half the time of ``grid_sample``, because what is read at a point is never written
out. Elsewhere, and in what is compiled or exported, ``grid_sample`` does the work; but its gradient has no
deterministic kernel for GPUs, and where that is asked for they read rows too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

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
    by_rows = not torch.compiler.is_compiling() and (values.is_cpu or torch.are_deterministic_algorithms_enabled())
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
    rows, shares = _Corners.apply(locations, weights, values.shape[1], shapes_hw, points)
    rows, shares = rows.flatten(3).flatten(0, 2), shares.flatten(3).flatten(0, 2)
    table = values.reshape(-1, values.shape[3])
    exact = torch.are_deterministic_algorithms_enabled()
    sums: Tensor = (table[rows] * shares[..., None]).sum(1) if exact else _Bags.apply(table, rows, shares)
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


class _Corners(torch.autograd.Function):
    """Finds the four cells around each point, and what each adds.

    The gradient is written out: recorded by torch, its seventy small steps take longer than the reading.
    """

    @staticmethod
    def forward(
        ctx: Any, locations: Tensor, weights: Tensor, cells: int, shapes_hw: Sequence[tuple[int, int]], points: Any
    ) -> tuple[Tensor, Tensor]:
        """Return int32 rows of the table and their weights, both ``[B, Q, H, 4, S]``.

        A cell off the map counts as its first or last one, with a weight of 0.
        """
        batch, _, heads, _ = weights.shape
        with torch.device(locations.device):
            level = torch.arange(len(shapes_hw)).repeat_interleave(torch.tensor(points))
            sizes = torch.tensor(shapes_hw, dtype=torch.int32).flip(1)[level]  # width and height, [S, 2]
            before = torch.tensor([0, *(height * width for height, width in shapes_hw)]).cumsum(0)[level]
            image = torch.arange(batch)[:, None, None, None] * cells
            first = ((image + before) * heads + torch.arange(heads)[:, None]).int()

        position = locations * sizes - 0.5
        floor = position.floor()
        fraction = position.sub_(floor)
        found = []
        for cell, share in ((floor, 1 - fraction), (floor + 1, fraction)):  # along x and along y at once
            nearest = cell.clamp(min=0).minimum(sizes - 1)
            counts = cell.eq_(nearest)
            found.append(((nearest.int() * heads).unbind(-1), share.mul_(counts), counts))

        shares = weights.new_empty(*weights.shape[:3], 4, weights.shape[3])
        rows = weights.new_empty(shares.shape, dtype=torch.int32)
        for y, ((_, line), line_share, _) in enumerate(found):
            start = torch.addcmul(first, line, sizes[:, 0])
            for x, ((column, _), column_share, _) in enumerate(found):
                torch.add(start, column, out=rows[..., 2 * y + x, :])
                torch.mul(line_share[..., 1], column_share[..., 0], out=shares[..., 2 * y + x, :])
        ctx.save_for_backward(weights, sizes, *(part for _, *parts in found for part in parts))
        ctx.mark_non_differentiable(rows)
        return rows, shares.mul_(weights[..., None, :])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Return the gradients of locations and weights."""
        weights, sizes, low, low_counts, high, high_counts = ctx.saved_tensors
        (left, top), (right, bottom) = low.unbind(-1), high.unbind(-1)
        corners = gradient.unbind(3)
        above, below = corners[0] * left + corners[1] * right, corners[2] * left + corners[3] * right
        before, after = corners[0] * top + corners[2] * bottom, corners[1] * top + corners[3] * bottom
        of_locations = torch.stack((after, below), dim=-1) * high_counts
        of_locations -= torch.stack((before, above), dim=-1) * low_counts
        return of_locations * weights[..., None] * sizes, above * top + below * bottom, None, None, None


class _Bags(torch.autograd.Function):
    """Sums rows of a table by weights: bags of them, or a sparse matrix times the table.

    The table's gradient is that matrix, transposed, times that of the sums: SciPy multiplies them in a seventh of
    the time of what ``embedding_bag`` does, in the same order for any number of threads. The gradients of the
    weights are rows of the table times rows of that gradient, taken where the matrix has elements: a third.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
        """Return ``[N, C]`` of a table ``[R, C]``, int32 rows ``[N, K]`` and weights ``[N, K]``."""
        ctx.save_for_backward(table, rows, shares)
        return functional.embedding_bag(rows, table, mode="sum", per_sample_weights=shares)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        """Return the gradients of table and weights."""
        table, rows, shares = ctx.saved_tensors
        starts = torch.arange(0, rows.numel() + 1, rows.shape[1], dtype=torch.int32)
        parts, shape = (starts, rows.flatten(), shares.flatten()), (len(rows), len(table))
        read = csr_array(tuple(part.numpy() for part in reversed(parts)), shape=shape)  # type: ignore[no-untyped-call]
        with warnings.catch_warnings(action="ignore"):  # of sparse tensors, torch says that they are new
            matrix = torch.sparse_csr_tensor(*parts, shape, check_invariants=False)
        products = torch.sparse.sampled_addmm(matrix, gradient, table.T, beta=0.0)
        return torch.from_numpy(read.T @ gradient.numpy()), None, products.values().view_as(shares)


def _check_shapes(
    values: Tensor, shapes_hw: Sequence[tuple[int, int]], points: Sequence[int], locations: Tensor, weights: Tensor
) -> None:
    """Refuse shapes that contradict each other; torch's own words would be about bags or grids."""
    cells = sum(height * width for height, width in shapes_hw)
    if values.ndim != 4 or values.shape[1] != cells or len(points) != len(shapes_hw):
        raise UsageError(
            f"values have shape {list(values.shape)} and points are {list(points)}, expected [images, {cells} "
            f"cells, heads, features] and one count for each of {len(shapes_hw)} levels {list(shapes_hw)}"
        )
    expected = [values.shape[0], weights.shape[1], values.shape[2], sum(points)]
    if list(weights.shape) != expected or list(locations.shape) != [*expected, 2]:
        raise UsageError(
            f"locations have shape {list(locations.shape)}, weights {list(weights.shape)}; expected "
            f"{[*expected, 2]} and {expected} (images, queries, heads, points, and x and y)"
        )
