"""Position encodings of a feature map (paper A.4), as tokens ``[B, h * w, D]``.

B may be 1 where no image is padded: the encoding then holds for every image of the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sine_features(positions: Tensor, dim: int, temperature: float) -> Tensor:
    """Compute sines and cosines of positions, interleaved.

    Args:
        positions: Any shape ``[...]``, in radians of the slowest wave.
        dim: Even number of features.
        temperature: Ratio of the slowest wave's length to the fastest's, about.

    Returns:
        ``[..., dim]`` float32: sin, cos, sin, cos, ...
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    angles = positions.float().unsqueeze(-1) / temperature**exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class SinePosition(nn.Module):
    """Fixed two-dimensional sine encoding, normalised to the image without its padding.

    Half of the features encode y, the other half x; positions run from 1/h to 1 of a full turn.

    Args:
        dim: Features in all, a multiple of 4.
        temperature: As in :func:`sine_features`; the paper's is 10000.
        scale: Radians of the fastest wave over the whole image; the paper's is one turn, 2 pi.
    """

    def __init__(self, dim: int, temperature: float = 10000.0, scale: float = 2 * math.pi):
        super().__init__()
        self.dim = dim
        self.temperature = temperature
        self.scale = scale

    def forward(self, features: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Encode features ``[B, C, h, w]`` whose padding is ``[B, h, w]`` (True = padding) or None."""
        height, width = features.shape[-2:]
        if padding_mask is None:
            rows = torch.arange(1, height + 1, device=features.device)[None] / (height + 1e-6)
            columns = torch.arange(1, width + 1, device=features.device)[None] / (width + 1e-6)
        else:
            # valid regions are rectangles at the top left, so the first column and row say it all
            rows = _normalized_count(~padding_mask[:, :, 0])
            columns = _normalized_count(~padding_mask[:, 0, :])
        half = self.dim // 2
        y = sine_features(rows * self.scale, half, self.temperature)[:, :, None].expand(-1, -1, width, -1)
        x = sine_features(columns * self.scale, half, self.temperature)[:, None].expand(-1, height, -1, -1)
        return torch.cat((y, x), dim=-1).flatten(1, 2)

    def encode(self, points: Tensor) -> Tensor:
        """Return the encoding ``[N, dim]`` of single points (x, y) ``[N, 2]``, 0 to 1 of the image."""
        half = self.dim // 2
        x, y = (sine_features(points[:, axis] * self.scale, half, self.temperature) for axis in (0, 1))
        return torch.cat((y, x), dim=-1)


class GridPosition(nn.Module):
    """Fixed two-dimensional sine encoding of whole cells, whatever the size of the map (arXiv:2304.08069).

    A quarter of the features each: sines and cosines of the row, then of the column. The authors' code takes the
    cells of a map that is not square in another order than its tokens; this page does not.

    Args:
        dim: Features in all, a multiple of 4.
        temperature: As in :func:`sine_features`.
    """

    def __init__(self, dim: int, temperature: float = 10000.0):
        super().__init__()
        self.dim = dim
        self.temperature = temperature

    def forward(self, features: Tensor, _padding_mask: Tensor | None = None) -> Tensor:
        """Encode features ``[B, C, h, w]``."""
        height, width = features.shape[-2:]
        device = features.device
        steps = torch.arange(self.dim // 4, dtype=torch.float32, device=device) / (self.dim // 4)
        rows, columns = (
            torch.arange(side, device=device)[:, None] / self.temperature**steps for side in (height, width)
        )
        y = torch.cat((rows.sin(), rows.cos()), dim=-1)[:, None].expand(-1, width, -1)
        x = torch.cat((columns.sin(), columns.cos()), dim=-1)[None].expand(height, -1, -1)
        return torch.cat((y, x), dim=-1).flatten(0, 1)[None]


class LearnedPosition(nn.Module):
    """Learned row and column embeddings (the published code's alternative), for maps up to 50 x 50.

    Args:
        dim: Features in all; half for columns, half for rows.
    """

    max_side = 50

    def __init__(self, dim: int):
        super().__init__()
        self.row_embed = nn.Embedding(self.max_side, dim // 2)
        self.col_embed = nn.Embedding(self.max_side, dim // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, features: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Encode features ``[B, C, h, w]``; padding does not count. Longer sides repeat the last row."""
        height, width = features.shape[-2:]
        device = features.device
        y = self.row_embed(torch.arange(height, device=device).clamp(max=self.max_side - 1))
        x = self.col_embed(torch.arange(width, device=device).clamp(max=self.max_side - 1))
        grid = torch.cat((x[None].expand(height, -1, -1), y[:, None].expand(-1, width, -1)), dim=-1)
        return grid.flatten(0, 1)[None]


def _normalized_count(valid: Tensor) -> Tensor:
    """Return 1/n to 1 along the valid cells ``[B, n]``, staying at 1 on padding; float32."""
    count = valid.int().cumsum(1).float()  # of integers, which GPUs sum deterministically
    return count / (count[:, -1:] + 1e-6)
