"""Queries of a DETR that exist in training only: further sets of learned ones, and noised objects.

Each set and each copy of the objects sees only itself, so the model's own queries give what they would give alone.

Shapes: B images, D features, Q queries, G sets, K further queries, S labels of the head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from detrkit.config import AidsConfig
from detrkit.nn.denoising import NoisedObjects, block_mask, noise_objects
from detrkit.nn.mlp import MLP
from detrkit.nn.position import SinePosition
from detrkit.types import NO_QUERY, DenoisedOutputs, GroupOutputs, Objects


class Queries(NamedTuple):
    """What the decoder begins with.

    positions: ``[B, K, D]``. contents: what is added to what queries start as, ``[B or 1, K, D]`` or None.
    references: reference boxes before the sigmoid, ``[B or 1, K, 4]``; None if the model has none.
    """

    positions: Tensor
    contents: Tensor | None
    references: Tensor | None


class FurtherQueries(NamedTuple):
    """All queries of a training step, the model's own first, and how to take their answers apart."""

    queries: Queries
    mask: Tensor
    groups: int
    noised: NoisedObjects | None
    copies: int


class DetrAids(nn.Module):
    """Makes the further queries of a training step.

    Args:
        config: What there is of them.
        dim: Features D.
        num_queries: Queries Q of the model.
        num_labels: Labels S of the head.
        has_references: Whether the model's boxes are offsets from reference boxes.
    """

    def __init__(self, config: AidsConfig, dim: int, num_queries: int, num_labels: int, has_references: bool):
        super().__init__()
        self.config = config
        self.num_labels = num_labels
        further = (config.groups - 1, num_queries)
        self.group_queries = nn.Parameter(torch.randn(*further, dim)) if config.groups > 1 else None
        self.group_query_references = (
            nn.Parameter(torch.zeros(*further, 4)) if config.groups > 1 and has_references else None
        )
        self.label_embed = nn.Embedding(num_labels, dim) if config.denoising else None
        self.box_embed = MLP(4, dim, dim, num_layers=2) if config.denoising else None

    def forward(self, own: Queries, position: nn.Module, objects: Objects | None) -> FurtherQueries:
        """Add the further queries to the model's own.

        Args:
            own: The model's.
            position: Its position encoding.
            objects: Of the batch; without them nothing is noised.
        """
        images, num_queries = own.positions.shape[:2]
        blocks = [torch.zeros(num_queries, dtype=torch.int64, device=own.positions.device)]
        parts = [own]
        groups = self.config.groups - 1
        if self.group_queries is not None:
            parts.append(self._groups(images, own.positions.dtype))
            blocks.append(torch.arange(1, groups + 1, device=blocks[0].device).repeat_interleave(num_queries))
        noised, exists = None, None
        if self.label_embed is not None and objects is not None:
            noised = noise_objects(
                objects,
                self.config.denoising,
                self.num_labels,
                label_noise=self.config.label_noise,
                box_noise=self.config.box_noise,
            )
            parts.append(self._noised(noised, position, own))
            blocks.append(noised.blocks + groups + 1)
            learned = torch.ones(images, num_queries * (groups + 1), dtype=torch.bool, device=blocks[0].device)
            exists = torch.cat((learned, noised.objects != NO_QUERY), dim=1)
        mask = block_mask(torch.cat(blocks), exists)
        return FurtherQueries(_join(parts), mask, groups, noised, self.config.denoising)

    def _groups(self, images: int, dtype: torch.dtype) -> Queries:
        assert self.group_queries is not None
        references = self.group_query_references
        return Queries(
            self.group_queries.to(dtype).flatten(0, 1).expand(images, -1, -1),
            None,
            None if references is None else references.flatten(0, 1)[None],
        )

    def _noised(self, noised: NoisedObjects, position: nn.Module, own: Queries) -> Queries:
        """Make queries of noised objects: the box is reference and position, the class what the query holds."""
        assert self.label_embed is not None
        assert self.box_embed is not None
        dtype = own.positions.dtype
        placed = self.box_embed(noised.boxes_cxcywh)
        if isinstance(position, SinePosition):
            centers = noised.boxes_cxcywh[..., :2]
            placed = placed + position.encode(centers.flatten(0, 1)).view(placed.shape)
        references = None if own.references is None else noised.boxes_cxcywh.logit(eps=1e-4)
        return Queries(placed.to(dtype), self.label_embed(noised.logit_index).to(dtype), references)


def _join(parts: list[Queries]) -> Queries:
    """Join all queries, one after another."""
    positions = torch.cat([part.positions for part in parts], dim=1)
    contents = None
    if any(part.contents is not None for part in parts):
        contents = torch.cat(
            [torch.zeros_like(part.positions) if part.contents is None else part.contents for part in parts], dim=1
        )
    if parts[0].references is None:
        return Queries(positions, contents, None)
    images = len(positions)
    references = [part.references.expand(images, -1, -1) for part in parts if part.references is not None]
    return Queries(positions, contents, torch.cat(references, dim=1))


def take_apart(
    logits: Tensor, boxes_cxcywh: Tensor, num_queries: int, further: FurtherQueries
) -> tuple[Tensor, Tensor, GroupOutputs | None, DenoisedOutputs | None]:
    """Split answers ``[L, B, K, ...]`` of all queries into the model's own, other sets' and noised objects'."""
    learned = num_queries * (further.groups + 1)
    groups, denoised = None, None
    if further.groups:
        shape = (*logits.shape[:2], further.groups, num_queries, -1)
        groups = GroupOutputs(*(part[:, :, num_queries:learned].reshape(shape) for part in (logits, boxes_cxcywh)))
    if further.noised is not None:
        denoised = DenoisedOutputs(
            logits[:, :, learned:], boxes_cxcywh[:, :, learned:], further.noised.objects, further.copies
        )
    return logits[:, :, :num_queries], boxes_cxcywh[:, :, :num_queries], groups, denoised
