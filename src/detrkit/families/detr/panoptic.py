"""Masks of DETR's queries: attention maps and a small convolutional head over the backbone's stages.

As in arXiv:2005.12872, section 4.4 and figure 8: where a query looks, in each head, is refined from the last
stage's resolution to the finest's. Only the cost differs from the published code: queries that nobody asks for do
not go through the head, and what its first convolution makes of the image's features is computed once for all of
them. With exact padding an image gets the masks that it would get alone.

Shapes: B images, Q queries, M chosen ones, D features, h x w cells of the last stage's map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from detrkit.nn.norm import PaddedGroupNorm
from detrkit.nn.recompute import Recomputing, run_part
from detrkit.ops.boxes import cxcywh_to_xyxy

Level = tuple[Tensor, Tensor | None]
"""Features of a stage ``[B, C, h, w]`` and their padding mask, None where nothing is padded."""

# Queries at once: on a CPU their maps shall stay in its cache.
_AT_ONCE = {"cpu": 8}
_AT_ONCE_ELSEWHERE = 32


class AttentionMaps(nn.Module):
    """Where queries look: a softmax over all heads and positions together, as published; no values are read.

    Args:
        dim: Features D.
        num_heads: Heads.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.k_linear = nn.Linear(dim, dim)

    def keys(self, memory: Tensor) -> Tensor:
        """Return the keys of the encoder's output ``[B, N, D]`` by head, ``[B, heads, D / heads, N]``."""
        keys: Tensor = self.k_linear(memory).transpose(1, 2)
        return keys.reshape(keys.shape[0], self.num_heads, -1, keys.shape[-1])

    def forward(self, queries: Tensor, keys: Tensor, padding: Tensor | None) -> Tensor:
        """Return maps ``[M, heads, N]`` of queries ``[M, D]`` over keys ``[M or 1, heads, D / heads, N]``."""
        scores = self._scores(queries, keys)
        if padding is not None:
            scores = scores.masked_fill(padding[:, None], -torch.inf)
        weights: Tensor = scores.flatten(1).softmax(-1)
        return weights.view_as(scores)

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        asked = self.q_linear(queries).unflatten(1, (self.num_heads, 1, -1))
        return (asked / math.sqrt(asked.shape[-1]) @ keys).squeeze(2)  # type: ignore[no-any-return]


class ScoreMaps(AttentionMaps):
    """The same without the softmax, whose shares of all positions are too small for a new head to learn from."""

    def forward(self, queries: Tensor, keys: Tensor, padding: Tensor | None) -> Tensor:
        """See :meth:`AttentionMaps.forward`; 0 on padding."""
        scores = self._scores(queries, keys)
        return scores if padding is None else scores.masked_fill(padding[:, None], 0.0)


class Places(NamedTuple):
    """Where queries and cells lie, if maps of boxes go before the head.

    boxes_cxcywh: Of the queries, 0 to 1 of the image, ``[B, Q, 4]``. points: Centres of the cells (x, y), 0 to 1,
    ``[B or 1, N, 2]``.
    """

    boxes_cxcywh: Tensor
    points: Tensor


def edge_maps(boxes_cxcywh: Tensor, points: Tensor) -> Tensor:
    """Return how far points ``[M or 1, N, 2]`` lie inside each edge of boxes ``[M, 4]``, ``[M, 4, N]``.

    In sides of the box, at most 1, from -1; a point lies in the box if all four are positive.
    """
    x, y = points.unbind(-1)
    left, top, right, bottom = cxcywh_to_xyxy(boxes_cxcywh)[..., None].unbind(1)
    width, height = boxes_cxcywh[:, 2:, None].clamp(min=1e-4).unbind(1)
    inside = ((x - left) / width, (y - top) / height, (right - x) / width, (bottom - y) / height)
    return torch.stack(inside, dim=1).clamp(-1, 1)


class MaskHead(Recomputing):
    """From attention maps to mask logits, twice as fine with each stage of the backbone.

    Args:
        dim: Features D.
        num_maps: Maps of each query.
        channels: Channels of the stages that it climbs, coarse to fine.
    """

    def __init__(self, dim: int, num_maps: int, channels: Sequence[int]):
        super().__init__()
        self.dim = dim
        wide = dim + num_maps
        widths = [wide, wide, *(dim // 2 ** (step + 1) for step in range(len(channels) + 1))]
        for number, (before, after) in enumerate(itertools.pairwise(widths), start=1):
            self.add_module(f"lay{number}", nn.Conv2d(before, after, 3, padding=1))
            self.add_module(f"gn{number}", PaddedGroupNorm(math.gcd(8, after), after))
        self.out_lay = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for step, count in enumerate(channels):
            self.add_module(f"adapter{step + 1}", nn.Conv2d(count, widths[step + 2], 1))
        self.steps = len(channels)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def look(self, projected: Tensor, stages: Sequence[Tensor], valid: Sequence[Tensor | None]) -> list[Tensor]:
        """Return what all queries of an image have in common at each resolution, coarse to fine.

        Args:
            projected: The last stage as the encoder reads it, ``[B, D, h, w]``.
            stages: Features of the finer stages, coarse to fine.
            valid: 1 on images and 0 on padding, for each resolution.
        """
        first: nn.Conv2d = self.lay1  # type: ignore[assignment]
        seen = _masked(projected, valid[0])
        found = [functional.conv2d(seen, first.weight[:, : self.dim], first.bias, padding=1)]
        for step, features in enumerate(stages, start=1):
            found.append(_masked(getattr(self, f"adapter{step}")(features), valid[step]))
        return found

    def forward(self, maps: Tensor, common: Sequence[Tensor], valid: Sequence[Tensor | None]) -> Tensor:
        """Return mask logits ``[M, h, w]`` of the finest stage.

        Args:
            maps: ``[M, heads, h, w]``.
            common: Of :meth:`look`, for each query, ``[M or 1, C, h, w]``.
            valid: As there, for each query.
        """
        first: nn.Conv2d = self.lay1  # type: ignore[assignment]
        x = functional.conv2d(maps, first.weight[:, self.dim :], padding=1) + common[0]
        x = self._normed(x, 1, valid[0])
        x = self._normed(getattr(self, "lay2")(x), 2, valid[0])  # noqa: B009
        for step in range(1, self.steps + 1):
            x = functional.interpolate(x, size=common[step].shape[-2:]) + common[step]
            x = self._normed(getattr(self, f"lay{step + 2}")(_masked(x, valid[step])), step + 2, valid[step])
        return self.out_lay(x)[:, 0]  # type: ignore[no-any-return]

    def _normed(self, x: Tensor, number: int, valid: Tensor | None) -> Tensor:
        x = functional.relu(getattr(self, f"gn{number}")(x, valid), inplace=True)
        return _masked(x, valid)


class DetrMasks:
    """Masks of a forward's queries; see :class:`detrkit.types.QueryMasks`.

    Args:
        attention: Makes the maps.
        head: Makes masks of them.
        queries: The decoder's last output, ``[B, Q, D]``.
        memory: The encoder's output, ``[B, N, D]``.
        projected: The last stage as the encoder reads it, ``[B, D, h, w]``.
        levels: Stages that the head climbs and the last one, fine to coarse.
        padding_mask: Of the images, bool ``[B, H, W]``, or None.
        size_hw: Height and width of the padded images.
        exact: Let padding count for nothing; False repeats the published code.
        places: Boxes of the queries, whose maps go before the head too.
        rests: Nothing is to be learnt of masks.
    """

    def __init__(
        self,
        attention: AttentionMaps,
        head: MaskHead,
        queries: Tensor,
        memory: Tensor,
        projected: Tensor,
        levels: Sequence[Level],
        padding_mask: Tensor | None,
        size_hw: tuple[int, int],
        exact: bool,
        places: Places | None = None,
        rests: bool = False,
    ):
        self.rests = rests
        self._attention, self._head, self._queries, self._places = attention, head, queries, places
        coarse_to_fine = self._levels = levels[::-1]
        padding = coarse_to_fine[0][1]
        self._padding = None if padding is None else padding.flatten(1)
        self._valid: list[Tensor | None] = [
            None if mask is None or not exact else (~mask)[:, None].to(projected.dtype)
            for _, mask in coarse_to_fine
        ]
        self._map_hw = projected.shape[-2:]
        self._keys = attention.keys(memory)
        self._common = head.look(projected, [features for features, _ in coarse_to_fine[1:]], self._valid)
        device = projected.device
        self._autocast = (torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type))
        fine_hw = torch.tensor(self._common[-1].shape[-2:]).to(device, non_blocking=True)
        whole_hw = torch.tensor(size_hw).to(device, non_blocking=True)
        counts = (queries.shape[0], 2)  # no len(): it would fix the batch of an export
        self.regions = torch.stack((fine_hw.expand(counts), whole_hw.expand(counts), whole_hw.expand(counts)))
        if padding_mask is not None:
            own = _extent(padding_mask)
            fine_padding = coarse_to_fine[-1][1]
            assert fine_padding is not None
            self.regions[2] = own
            if exact:
                self.regions[0], self.regions[1] = _extent(fine_padding), own

    def __call__(self, images: Tensor, queries: Tensor) -> Tensor:
        """Return mask logits ``[M, h, w]``, some queries after the others."""
        if torch.compiler.is_exporting():
            return self._some(images, queries)
        device = images.device.type
        at_once = _AT_ONCE.get(device, _AT_ONCE_ELSEWHERE)
        enabled, dtype = self._autocast
        parts = zip(torch.split(images, at_once), torch.split(queries, at_once), strict=True)
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            found = [run_part(self._head, self._head, self._some, *part) for part in parts]
        return torch.cat(found) if found else images.new_zeros((0, *self._common[-1].shape[-2:])).float()

    def all(self) -> Tensor:
        """Return the mask logits of all queries, ``[B, Q, h, w]``."""
        count, queries = self._queries.shape[:2]
        rows = torch.arange(count * queries, device=self._queries.device)
        found = self(rows // queries, rows % queries)
        return found.reshape(count, queries, *found.shape[1:])

    def parts(self) -> tuple[Tensor, ...]:
        """Return what :class:`MaskGraph` makes masks of, of a padded batch.

        First the cells of each map that are no padding, int64 ``[B, maps, 2]``, then queries ``[B, Q, D]``, then
        the maps ``[B, C, h, w]``, the first two of the last stage's size.
        """
        cells = [_extent(padding) for _, padding in self._levels if padding is not None]
        queries, keys = self._queries, self._keys.flatten(1, 2)
        if self._places is not None:  # behind both, boxes and points
            count = keys.shape[0]
            queries = torch.cat((queries, self._places.boxes_cxcywh), dim=-1)
            keys = torch.cat((keys, self._places.points.transpose(1, 2).expand(count, -1, -1)), dim=1)
        keys = keys.reshape(*keys.shape[:2], *self._map_hw)
        return torch.stack([cells[0], *cells], dim=1), queries, keys, *self._common

    def _some(self, images: Tensor, queries: Tensor) -> Tensor:
        def of(values: Tensor) -> Tensor:
            return values if values.shape[0] == 1 else values[images]

        padding = None if self._padding is None else of(self._padding)
        maps = self._attention(self._queries[images, queries], of(self._keys), padding)
        if self._places is not None:
            edges = edge_maps(self._places.boxes_cxcywh[images, queries], of(self._places.points))
            edges = edges if padding is None else edges.masked_fill(padding[:, None], 0.0)
            maps = torch.cat((maps, edges.to(maps.dtype)), dim=1)
        maps = maps.unflatten(2, self._map_hw)
        valid = [None if mask is None else of(mask) for mask in self._valid]
        return self._head(maps, [of(values) for values in self._common], valid).float()  # type: ignore[no-any-return]


class MaskGraph(nn.Module):
    """Masks of some queries of one image without padding, as an exported graph of its own computes them.

    Args:
        attention: Makes the maps.
        head: Makes masks of them.
    """

    def __init__(self, attention: AttentionMaps, head: MaskHead):
        super().__init__()
        self.attention, self.head = attention, head

    def forward(self, queries: Tensor, keys: Tensor, common: list[Tensor]) -> Tensor:
        """Return mask logits ``[M, h, w]`` of queries ``[M, D]``, given maps of :meth:`DetrMasks.parts`."""
        dim, heads = self.attention.k_linear.out_features, self.attention.num_heads
        by_head = keys[:, :dim].reshape(1, heads, dim // heads, -1)
        maps = self.attention(queries[:, :dim], by_head, None)
        if keys.shape[1] > dim:
            edges = edge_maps(queries[:, dim:], keys[:, dim:].flatten(2).transpose(1, 2))
            maps = torch.cat((maps, edges), dim=1)
        maps = maps.reshape(*maps.shape[:2], *keys.shape[-2:])
        found: Tensor = self.head(maps, common, [None] * len(common))
        return found.float()


def _masked(x: Tensor, valid: Tensor | None) -> Tensor:
    return x if valid is None else x * valid.to(x.dtype)


def _extent(padding_mask: Tensor) -> Tensor:
    """Return the height and width that are no padding, int64 ``[B, 2]``."""
    return torch.stack(((~padding_mask[:, :, 0]).sum(1), (~padding_mask[:, 0]).sum(1)), dim=1)
