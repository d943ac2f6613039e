"""Multi-scale deformable attention (arXiv:2010.04159, section 4.1), with boxes as references.

Shapes: B images, Q queries, D features, M cells of all levels one after another, L levels, S points of a head over
all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrkit.errors import UsageError
from detrkit.ops.deformable import deformable_sample

# Offsets count in halves of the box's sides, divided by the points of the level.
_BOX_SHARE = 0.5


def valid_shares(padding_mask: Tensor, shapes_hw: Sequence[tuple[int, int]]) -> Tensor:
    """Return the share of each level's width and height that is image, not padding.

    Compute it once a batch and hand it to every layer.

    Args:
        padding_mask: bool ``[B, M]``, True = padding. The image is a rectangle at the top left of each level.
        shapes_hw: Height and width of each level.

    Returns:
        ``[B, L, 2]`` float32, of x and y.

    Raises:
        UsageError: The mask has another number of cells than the levels.
    """
    cells = [height * width for height, width in shapes_hw]
    if padding_mask.shape[1] != sum(cells):
        raise UsageError(
            f"padding_mask holds {padding_mask.shape[1]} cells, expected {sum(cells)} of levels {list(shapes_hw)}"
        )
    shares = []
    for mask, (height, width) in zip(torch.split(padding_mask, cells, dim=1), shapes_hw, strict=True):
        valid = ~mask.reshape(-1, height, width)
        shares.append(torch.stack((valid[:, 0].float().mean(1), valid[:, :, 0].float().mean(1)), dim=1))
    return torch.stack(shares, dim=1)


class DeformableAttention(nn.Module):
    """Attention to a few points near a box, chosen and weighted by the query.

    Offsets are relative to the box (arXiv:2010.04159, A.4): at the start, the outermost point of a level lies on
    the box's edge. Parameters are named and laid out as in the published code, level by level inside a head.

    Args:
        dim: Features D.
        num_heads: Heads, a divisor of D.
        num_levels: Feature maps L.
        num_points: Points of a head in each level, or the points of every level (arXiv:2410.13842).
        discrete: Read the nearest cell at each point instead of four around it (arXiv:2407.17140); points then
            learn nothing.
        project: Project what is read before and after; without, features are read as they are (arXiv:2410.13842).

    Raises:
        UsageError: The numbers contradict each other.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int | Sequence[int],
        *,
        discrete: bool = False,
        project: bool = True,
    ):
        super().__init__()
        self.discrete = discrete
        self.points = (num_points,) * num_levels if isinstance(num_points, int) else tuple(num_points)
        self.num_heads = num_heads
        if dim % num_heads:
            raise UsageError(f"{dim} features do not divide into {num_heads} heads; choose a divisor")
        if len(self.points) != num_levels or min(self.points, default=0) < 1:
            raise UsageError(
                f"num_points is {num_points}, expected at least 1, for each of {num_levels} levels (at least 1)"
            )
        total = num_heads * sum(self.points)
        self.sampling_offsets = nn.Linear(dim, total * 2)
        self.attention_weights = nn.Linear(dim, total)
        self.value_proj = nn.Linear(dim, dim) if project else nn.Identity()
        self.output_proj = nn.Linear(dim, dim) if project else nn.Identity()
        # derived from the arguments, so no part of a published state dict
        offset_scale = torch.tensor([_BOX_SHARE / count for count in self.points for _ in range(count)])
        self.register_buffer("offset_scale", offset_scale[:, None], persistent=False)
        self.offset_scale: Tensor
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the paper does: heads look in different directions, points ever further out, all alike."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=1)
        directions = directions / directions.abs().amax(1, keepdim=True)  # onto a square
        steps = torch.cat([torch.arange(1, count + 1) for count in self.points])
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((directions[:, None] * steps[:, None]).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            if isinstance(projection, nn.Identity):
                continue
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Tensor,
        references_cxcywh: Tensor,
        values: Tensor,
        shapes_hw: Sequence[tuple[int, int]],
        padding_mask: Tensor | None = None,
        shares: Tensor | None = None,
    ) -> Tensor:
        """Attend. Padding changes nothing, as long as the image covers whole cells of each level.

        Args:
            queries: ``[B, Q, D]``, positions added.
            references_cxcywh: Boxes ``[B, Q, 4]``, 0 to 1 of the image without padding.
            values: ``[B, M, D]``; what they hold on padding does not count.
            shapes_hw: Height and width of each level, with padding.
            padding_mask: bool ``[B, M]``, True = padding; None = no padding anywhere.
            shares: What :func:`valid_shares` says of the mask, to save counting again.

        Returns:
            ``[B, Q, D]``.

        Raises:
            UsageError: Shapes contradict each other.
        """
        if list(references_cxcywh.shape) != [*queries.shape[:2], 4]:
            raise UsageError(
                f"references_cxcywh have shape {list(references_cxcywh.shape)}, expected {[*queries.shape[:2], 4]}"
            )
        projected = self.value_proj(values)
        if padding_mask is not None:
            if padding_mask.shape != values.shape[:2]:
                raise UsageError(
                    f"padding_mask has shape {list(padding_mask.shape)}, expected {list(values.shape[:2])}"
                )
            projected = projected.masked_fill(padding_mask[..., None], 0)
            shares = valid_shares(padding_mask, shapes_hw) if shares is None else shares
        weights = self.attention_weights(queries).unflatten(2, (self.num_heads, -1)).float().softmax(-1)
        sums = deformable_sample(
            projected.unflatten(2, (self.num_heads, -1)),
            shapes_hw,
            self.points,
            self._locate(queries, references_cxcywh, shares),
            weights,
            discrete=self.discrete,
        )
        return self.output_proj(sums)  # type: ignore[no-any-return]

    def _locate(self, queries: Tensor, references: Tensor, shares: Tensor | None) -> Tensor:
        """Return sampling points ``[B, Q, heads, S, 2]``, 0 to 1 of each level's map with its padding, float32."""
        offsets: Tensor = self.sampling_offsets(queries).unflatten(2, (self.num_heads, -1, 2)).float()
        boxes = references[:, :, None, None]
        locations = boxes[..., :2] + offsets * self.offset_scale * boxes[..., 2:]
        if shares is None:
            return locations
        level = [index for index, count in enumerate(self.points) for _ in range(count)]
        return locations * shares[:, None, None, level]
