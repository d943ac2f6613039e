"""The set prediction loss of DETR over all decoder layers at once (paper section 3.1 and A.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from detrkit.config import LossConfig
from detrkit.losses import terms
from detrkit.losses.dense import dense_terms
from detrkit.losses.matcher import HungarianMatcher, Matches
from detrkit.types import ClassMap, GroundTruth, Outputs


@dataclasses.dataclass(frozen=True)
class Normalizers:
    """What the summed losses are divided by; those of micro-batches and ranks add up.

    Both are known from the number of objects alone, before any forward: gradient accumulation can therefore
    give exactly the gradient of the whole batch, and no device has to be asked.

    Args:
        num_boxes: Ground-truth boxes.
        class_weight: Sum of the class weights of all queries of one layer.
    """

    num_boxes: float
    class_weight: float

    def __add__(self, other: Normalizers) -> Normalizers:
        return Normalizers(self.num_boxes + other.num_boxes, self.class_weight + other.class_weight)


@dataclasses.dataclass(frozen=True)
class LastLayer:
    """What the last layer said of the images, detached.

    Args:
        logits: ``[B, Q, S + 1]``.
        boxes_cxcywh: ``[B, Q, 4]``.
        matched: Whether a query was matched with an object, bool ``[B, Q]``.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    matched: Tensor


@dataclasses.dataclass(frozen=True)
class Losses:
    """One step's losses.

    Args:
        total: Weighted sum over terms and layers, to call ``backward`` on.
        terms: The last layer's value of each term, normalised but unweighted, detached.
        layer_terms: The same for every layer, ``[L]`` each.
        last: What they are of, of the last layer.
    """

    total: Tensor
    terms: dict[str, Tensor]
    layer_terms: dict[str, Tensor]
    last: LastLayer


class Criterion:
    """Matches predictions to objects and sums the weighted loss terms.

    Args:
        config: Costs and weights.
        class_map: Tells which logit column each class has.
        num_queries: Queries of the model.
    """

    def __init__(self, config: LossConfig, class_map: ClassMap, num_queries: int):
        self.config = config
        self.num_queries = num_queries
        self.matcher = HungarianMatcher(config.class_cost, config.l1_cost, config.giou_cost)
        self.weights = {"class": config.class_weight, "l1": config.l1_weight, "giou": config.giou_weight}
        self._slots = torch.tensor(class_map.slots, dtype=torch.int64)

    def normalizers(self, counts: Sequence[int]) -> Normalizers:
        """Normalisers of images with so many objects each, crowd regions not counted."""
        matched = sum(min(count, self.num_queries) for count in counts)
        unmatched = self.num_queries * len(counts) - matched
        return Normalizers(
            num_boxes=float(sum(counts)), class_weight=matched + self.config.no_object_weight * unmatched
        )

    def __call__(self, outputs: Outputs, truth: GroundTruth, normalizers: Normalizers | None = None) -> Losses:
        """The losses of a batch.

        Args:
            outputs: Predictions of L layers.
            truth: The batch's objects; images without any are legal.
            normalizers: Those of the whole effective batch; this batch's own if not given.
        """
        if not self.config.aux:
            outputs = Outputs(outputs.logits[-1:], outputs.boxes_cxcywh[-1:], outputs.dense)
        whole = normalizers or self.normalizers(truth.counts)
        num_boxes, class_weight = max(whole.num_boxes, 1.0), max(whole.class_weight, 1e-6)
        if self._slots.device != truth.labels.device:
            self._slots = self._slots.to(truth.labels.device)
        slots = self._slots[truth.labels]
        matches = self.matcher(outputs, truth, slots)
        target_slots = _target_slots(outputs.logits, matches, slots)
        layers = torch.arange(outputs.logits.shape[0], device=slots.device)[:, None]
        boxes = outputs.boxes_cxcywh[layers, matches.images, matches.queries]
        target_boxes = truth.boxes_cxcywh[matches.objects]
        per_layer = {
            "class": terms.class_loss(outputs.logits, target_slots, self.config.no_object_weight) / class_weight,
            "l1": terms.l1_loss(boxes, target_boxes) / num_boxes,
            "giou": terms.giou_loss(boxes, target_boxes) / num_boxes,
        }
        total = torch.stack([self.weights[name] * value.sum() for name, value in per_layer.items()]).sum()
        extra = {}
        if outputs.dense is not None and self.config.dense_weight:
            found = dense_terms(outputs.dense, truth, slots, self.config, self.num_queries)
            divisors = {"class": class_weight, "l1": num_boxes, "giou": num_boxes}
            extra["dense"] = torch.stack(
                [self.weights[name] * value / divisors[name] for name, value in found.items()]
            ).sum()
            total = total + self.config.dense_weight * extra["dense"]
        layer_terms = {name: value.detach() for name, value in per_layer.items()}
        last = {name: value[-1] for name, value in layer_terms.items()}
        last.update({name: value.detach() for name, value in extra.items()})
        last["class_error"] = terms.class_error(outputs.logits, target_slots)
        matched = target_slots[-1] != outputs.logits.shape[-1] - 1
        seen = LastLayer(outputs.logits[-1].detach(), outputs.boxes_cxcywh[-1].detach(), matched)
        return Losses(total=total, terms=last, layer_terms=layer_terms, last=seen)


def _target_slots(logits: Tensor, matches: Matches, slots: Tensor) -> Tensor:
    """The logit column every query should choose, int64 ``[L, B, Q]``; no-object where unmatched."""
    no_object = logits.shape[-1] - 1
    targets = torch.full(logits.shape[:3], no_object, dtype=torch.int64, device=logits.device)
    layers = torch.arange(logits.shape[0], device=logits.device)[:, None]
    targets[layers, matches.images, matches.queries] = slots[matches.objects]
    return targets
