"""The losses of D-FINE (arXiv:2410.13842): fine-grained localization, and layers that learn from the last one.

Boxes learn from the union of the pairs that any layer was matched by (GO-LSD, section 4.2). Two things here are
means over what a batch happens to hold, so that they do not add up over parts of it: the pairs of the union and
the distillation. Where a step goes through the network in parts, each part's mean weighs by its share of objects.

Shapes: L layers with distributions, B images, Q queries, N bins, P pairs of the union.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detrkit.classes import ClassMap
from detrkit.config import LossConfig
from detrkit.losses.criterion import Criterion, giou_loss, l1_loss
from detrkit.losses.matcher import Matches
from detrkit.losses.scoring import ClassScoring
from detrkit.ops.boxes import broadcast_iou, cxcywh_to_xyxy
from detrkit.types import NO_QUERY, DenoisedOutputs, EdgeOutputs, GroundTruth, Outputs

# Softness of what layers learn from the last one (equation 6).
_TEMPERATURE = 5.0


class DistributionCriterion(Criterion):
    """The criterion of decoders whose boxes are distributions; see :class:`detrkit.losses.criterion.Criterion`."""

    def __init__(
        self, config: LossConfig, class_map: ClassMap, num_queries: int, dense: str, scoring: ClassScoring
    ):
        super().__init__(config, class_map, num_queries, dense, scoring)
        self.weights |= {"fgl": config.fgl_weight, "ddf": config.ddf_weight}
        self._balance: tuple[Tensor, Tensor] | None = None

    def _set_terms(
        self, outputs: Outputs, matches: Matches, target_index: Tensor, truth: GroundTruth
    ) -> dict[str, Tensor]:
        """Compute each term of every layer, ``[L]``, as sums over objects or what stands for them."""
        found = super()._set_terms(outputs, matches, target_index, truth)
        if outputs.edges is None:
            return found
        pairs = unite_pairs(matches) if self.config.union else matches.pairs[:, -1]
        images, queries, objects = torch.from_numpy(pairs).to(outputs.logits.device, non_blocking=True)
        total = float(sum(truth.counts))
        scale = total / max(pairs.shape[1], 1)
        boxes, wanted = outputs.boxes_cxcywh[:, images, queries], truth.boxes_cxcywh[objects]
        if self.config.union:
            found["l1"], found["giou"] = l1_loss(boxes, wanted) * scale, giou_loss(boxes, wanted) * scale
        edges = outputs.edges
        boxes = boxes[-len(edges.logits) :]
        overlaps = broadcast_iou(cxcywh_to_xyxy(boxes.detach()), cxcywh_to_xyxy(wanted))
        logits, starts = edges.logits[:, images, queries], edges.starts[images, queries]
        fgl = (edge_losses(logits, edge_targets(starts, wanted, edges)) * overlaps[..., None]).sum((1, 2)) * scale
        is_pair = torch.zeros(outputs.logits.shape[1:3], dtype=torch.bool, device=logits.device)
        is_pair[images, queries] = True
        best = self.scoring.scores(outputs.logits[-1].detach()).amax(-1)
        weights = best.expand(len(edges.logits), -1, -1).clone()
        weights[:, images, queries] = overlaps
        ddf, self._balance = distillation(edges, weights, is_pair)
        skipped = (len(outputs.logits) - len(edges.logits), 0)
        return found | {"fgl": functional.pad(fgl, skipped), "ddf": functional.pad(ddf * total, skipped)}

    def _divisors(self, num_boxes: float, class_weight: float) -> dict[str, float]:
        return super()._divisors(num_boxes, class_weight) | {"fgl": num_boxes, "ddf": num_boxes}

    def _denoising(
        self, found: DenoisedOutputs, truth: GroundTruth, logit_index: Tensor, num_boxes: float
    ) -> Tensor:
        """Compute the weighted loss of noised objects, with that of their edges."""
        total: Tensor = super()._denoising(found, truth, logit_index, num_boxes)
        edges = found.edges
        if edges is None or found.objects.shape[1] == 0:
            return total
        positive, exists = found.objects >= 0, found.objects != NO_QUERY
        wanted = truth.boxes_cxcywh[found.objects.clamp(min=0)]
        boxes = found.boxes_cxcywh[-len(edges.logits) :]
        overlaps = broadcast_iou(cxcywh_to_xyxy(boxes.detach()), cxcywh_to_xyxy(wanted)) * positive
        losses = edge_losses(edges.logits, edge_targets(edges.starts, wanted, edges)) * overlaps[..., None]
        best = self.scoring.scores(found.logits[-1].detach()).amax(-1)
        weights = torch.where(positive, overlaps, best) * exists
        ddf, _ = distillation(edges, weights, positive, self._balance, exists)
        share = sum(truth.counts) / num_boxes
        edge_loss: Tensor = self.weights["fgl"] * losses.sum() / (found.copies * num_boxes)
        distilled: Tensor = self.weights["ddf"] * share * ddf.sum()
        return total + edge_loss + distilled


def unite_pairs(matches: Matches) -> np.ndarray:
    """Return the pairs that any layer was matched by, a query with the object that most layers give it.

    Returns:
        int64 ``[3, P]``: image, query, object.
    """
    pairs, counts = np.unique(matches.pairs.reshape(3, -1).T, axis=0, return_counts=True)
    pairs = pairs[np.argsort(-counts, kind="stable")]
    _, first = np.unique(pairs[:, :2], axis=0, return_index=True)
    return np.ascontiguousarray(pairs[first].T)


def edge_targets(starts: Tensor, wanted: Tensor, edges: EdgeOutputs) -> tuple[Tensor, Tensor]:
    """Return the bin below each edge's wanted offset, int64 ``[..., 4]``, and the share of the bin above it.

    Args:
        starts: Boxes that are moved, cxcywh ``[..., 4]``.
        wanted: Boxes of the objects, cxcywh ``[..., 4]``.
        edges: Tells the offsets of the bins.
    """
    scale, offsets = edges.scale.abs(), edges.offsets.detach()
    corners = cxcywh_to_xyxy(wanted)
    reach = torch.cat((starts[..., :2] - corners[..., :2], corners[..., 2:] - starts[..., :2]), dim=-1)
    offset = reach * scale / torch.cat((starts[..., 2:], starts[..., 2:]), dim=-1).clamp(min=1e-16) - 0.5 * scale
    below = (torch.searchsorted(offsets, offset.contiguous(), right=True) - 1).clamp(0, len(offsets) - 2)
    low, high = offsets[below], offsets[below + 1]
    return below, ((offset - low) / (high - low)).clamp(0, 1)


def edge_losses(logits: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross-entropy of edges with the two bins around their targets, ``[..., 4]`` (equation 5)."""
    below, share = targets
    logs = logits.log_softmax(-1)
    below = below.expand(logits.shape[:-1])
    lower, upper = (logs.gather(-1, (below + step)[..., None])[..., 0] for step in (0, 1))
    return -(lower * (1 - share) + upper * share)


def distillation(
    edges: EdgeOutputs,
    weights: Tensor,
    is_pair: Tensor,
    balance: tuple[Tensor, Tensor] | None = None,
    exists: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return what each layer's edges are from the last one's, ``[L]``, 0 for that (equations 6 and 7).

    Args:
        edges: Distributions.
        weights: Of each query, ``[L, B, Q]``.
        is_pair: Whether a query has an object, bool ``[B, Q]``.
        balance: Weight of queries with an object and of those without; by their numbers if not given.
        exists: Which queries count at all, bool ``[B, Q]``.
    """
    teacher = (edges.logits[-1:].detach() / _TEMPERATURE).log_softmax(-1)
    student = (edges.logits[:-1] / _TEMPERATURE).log_softmax(-1)
    apart = (teacher.exp() * (teacher - student)).sum(-1).sum(-1) / 4  # a mean over edges, [L - 1, B, Q]
    apart = apart * weights[:-1].detach() * _TEMPERATURE**2
    other = ~is_pair if exists is None else exists & ~is_pair
    means, numbers = [], []
    for chosen in (is_pair, other):
        number = chosen.sum()
        means.append((apart * chosen).sum((1, 2)) / number.clamp(min=1))
        numbers.append(number.sqrt())
    first, second = balance or (numbers[0], numbers[1])
    losses = (means[0] * first + means[1] * second) / (first + second).clamp(min=1e-6)
    return functional.pad(losses, (0, 1)), (numbers[0], numbers[1])
