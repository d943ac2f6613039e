"""The set prediction loss of DETR over all decoder layers at once (paper section 3.1 and A.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from detrkit.classes import ClassMap
from detrkit.config import LossConfig
from detrkit.errors import DataError
from detrkit.losses.dense import dense_terms
from detrkit.losses.masks import mask_terms
from detrkit.losses.matcher import HungarianMatcher, Matches
from detrkit.losses.scoring import SOFTMAX, ClassScoring
from detrkit.ops.boxes import broadcast_giou, broadcast_iou, cxcywh_to_xyxy
from detrkit.types import NO_QUERY, DenoisedOutputs, GroundTruth, GroupOutputs, Objects, Outputs

# DEIM's exponent of what a matched class should score (arXiv:2412.04234).
_MATCHABILITY = 1.5


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
        logits: ``[B, Q, C]``.
        boxes_cxcywh: ``[B, Q, 4]``.
        matched: Whether a query was matched with an object, bool ``[B, Q]``.
        scoring: What the logits mean.
    """

    logits: Tensor
    boxes_cxcywh: Tensor
    matched: Tensor
    scoring: ClassScoring = SOFTMAX


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
        dense_assignment: Which tokens belong to an object, if tokens are supervised; see :mod:`.dense`.
        scoring: What the class logits mean.
    """

    def __init__(
        self,
        config: LossConfig,
        class_map: ClassMap,
        num_queries: int,
        dense_assignment: str = "center",
        scoring: ClassScoring = SOFTMAX,
    ):
        if config.class_targets == "mal":
            scoring = dataclasses.replace(scoring, matchability=_MATCHABILITY)
        self.config = config
        self.num_queries = num_queries
        self.dense_assignment = dense_assignment
        self.scoring = scoring
        self.no_object_weight = scoring.no_object_weight(config.no_object_weight)
        self.matcher = HungarianMatcher(config.class_cost, config.l1_cost, config.giou_cost, scoring)
        self.weights = {
            name: getattr(config, f"{name}_weight") for name in ("class", "l1", "giou", "mask", "dice")
        }
        self._logit_index = torch.tensor(class_map.logit_index, dtype=torch.int64)

    def normalizers(self, counts: Sequence[int]) -> Normalizers:
        """Normalisers of images with so many objects each, crowd regions not counted."""
        matched = sum(min(count, self.num_queries) for count in counts)
        unmatched = self.num_queries * len(counts) - matched
        return Normalizers(float(sum(counts)), self.scoring.normalizer(matched, unmatched, self.no_object_weight))

    def logit_index_of(self, truth: GroundTruth) -> Tensor:
        """Return the logit column of each object's class, int64 ``[N]``."""
        if self._logit_index.device != truth.labels.device:
            self._logit_index = self._logit_index.to(truth.labels.device)
        return self._logit_index[truth.labels]

    def objects(self, truth: GroundTruth) -> Objects:
        """Return what a model whose aids begin with objects is told of a batch."""
        return self.logit_index_of(truth), truth.boxes_cxcywh, truth.counts

    def __call__(self, outputs: Outputs, truth: GroundTruth, normalizers: Normalizers | None = None) -> Losses:
        """Compute the losses of a batch.

        Args:
            outputs: Predictions of L layers.
            truth: The batch's objects; images without any are legal.
            normalizers: Those of the whole effective batch; this batch's own if not given.
        """
        if not self.config.aux:
            outputs = _last_only(outputs)
        whole = normalizers or self.normalizers(truth.counts)
        # without any object the class loss is divided by the weight of one prediction
        divisors = self._divisors(max(whole.num_boxes, 1.0), max(whole.class_weight, self.no_object_weight, 1e-6))
        logit_index = self.logit_index_of(truth)
        layers = outputs.logits.shape[0]
        every = _join_groups(outputs)
        matches = self.matcher(every, truth, logit_index)  # of all sets at once: one transfer to the host
        target_index = self._target_index(every.logits, matches, logit_index)
        terms_of_all = self._set_terms(every, matches, target_index, truth)
        per_layer = {name: value[:layers] / divisors[name] for name, value in terms_of_all.items()}
        total = self._weighted(per_layer)
        extra = {}
        if outputs.groups is not None:
            sets = outputs.groups.logits.shape[2]
            extra["groups"] = self._weighted(
                {name: value[layers:] / (sets * divisors[name]) for name, value in terms_of_all.items()}
            )
            total = total + self.config.group_weight * extra["groups"]
        if outputs.denoised is not None:
            extra["denoising"] = self._denoising(outputs.denoised, truth, logit_index, divisors["l1"])
            total = total + self.config.denoising_weight * extra["denoising"]
        if outputs.dense is not None and self.config.dense_weight:
            how = (self.config, self.num_queries, self.dense_assignment, self.scoring)
            found = dense_terms(outputs.dense, truth, logit_index, *how)
            extra["dense"] = self._weighted({name: value / divisors[name] for name, value in found.items()})
            total = total + self.config.dense_weight * extra["dense"]
        if outputs.masks is not None:  # of the last layer only: of all, masks would cost too much (section 4.4)
            if truth.masks is None and truth.counts and sum(truth.counts):
                raise DataError("the model learns masks, but the batch has none of its objects; see model.masks")
            taught: slice | np.ndarray = slice(0 if outputs.masks.rests else None)
            if not all(truth.has_mask):  # a box in place of a mask would teach that its object is a rectangle
                taught = np.flatnonzero(np.array(truth.has_mask)[matches.pairs[2, layers - 1]])[taught]
            images, queries, objects = (
                each[layers - 1][taught] for each in (matches.images, matches.queries, matches.objects)
            )
            found = mask_terms(outputs.masks, images, queries, objects, truth.masks)
            extra |= {name: value / divisors["l1"] for name, value in found.items()}
            total = total + self._weighted({name: extra[name] for name in found})
        layer_terms = {name: value.detach() for name, value in per_layer.items()}
        last = {name: value[-1] for name, value in layer_terms.items()}
        last.update({name: value.detach() for name, value in extra.items()})
        matched = target_index[layers - 1] != self._no_object(outputs.logits)
        seen = LastLayer(outputs.logits[-1].detach(), outputs.boxes_cxcywh[-1].detach(), matched, self.scoring)
        last["class_error"] = self._class_error(seen, target_index[layers - 1])
        return Losses(total=total, terms=last, layer_terms=layer_terms, last=seen)

    def _divisors(self, num_boxes: float, class_weight: float) -> dict[str, float]:
        return {"class": class_weight, "l1": num_boxes, "giou": num_boxes}

    def _weighted(self, values: Mapping[str, Tensor]) -> Tensor:
        """Sum all terms and layers with their weights."""
        return torch.stack([self.weights[name] * value.sum() for name, value in values.items()]).sum()

    def _set_terms(
        self, outputs: Outputs, matches: Matches, target_index: Tensor, truth: GroundTruth
    ) -> dict[str, Tensor]:
        """Compute each term of every layer, summed: ``[L]``."""
        layers = torch.arange(outputs.logits.shape[0], device=target_index.device)[:, None]
        boxes = outputs.boxes_cxcywh[layers, matches.images, matches.queries]
        wanted = truth.boxes_cxcywh[matches.objects]
        scores = None
        if self.config.class_targets != "hard":
            overlaps = broadcast_iou(cxcywh_to_xyxy(boxes.detach()), cxcywh_to_xyxy(wanted))
            scores = torch.ones(target_index.shape, device=boxes.device)
            scores[layers, matches.images, matches.queries] = overlaps
        return {
            "class": self._class_loss(outputs.logits, target_index, scores).sum(dim=(1, 2)),
            "l1": l1_loss(boxes, wanted),
            "giou": giou_loss(boxes, wanted),
        }

    def _denoising(
        self, found: DenoisedOutputs, truth: GroundTruth, logit_index: Tensor, num_boxes: float
    ) -> Tensor:
        """Compute the weighted loss of noised objects, a mean over the copies of each; nothing is matched."""
        if found.objects.shape[1] == 0:
            return found.logits.sum() * 0.0
        no_object = self._no_object(found.logits)
        positive = found.objects >= 0
        chosen = found.objects.clamp(min=0)
        wanted = truth.boxes_cxcywh[chosen]
        target_index = torch.where(positive, logit_index[chosen], no_object).expand(found.logits.shape[:-1])
        corners, wanted_corners = cxcywh_to_xyxy(found.boxes_cxcywh), cxcywh_to_xyxy(wanted)
        scores = None
        if self.config.class_targets != "hard":
            scores = torch.where(positive, broadcast_iou(corners.detach(), wanted_corners), 1.0)
        exists = found.objects != NO_QUERY
        each = {
            "class": self._class_loss(found.logits, target_index, scores) * exists,
            "l1": (found.boxes_cxcywh - wanted).abs().sum(-1) * positive,
            "giou": (1 - broadcast_giou(corners, wanted_corners)) * positive,
        }
        weight = found.copies * num_boxes
        divisors = self._divisors(weight, self.scoring.normalizer(weight, weight, self.no_object_weight))
        return self._weighted({name: value.sum() / divisors[name] for name, value in each.items()})

    def _no_object(self, logits: Tensor) -> int:
        """Return the target of queries without an object: the number of labels."""
        return logits.shape[-1] - self.scoring.extra_columns

    def _target_index(self, logits: Tensor, matches: Matches, logit_index: Tensor) -> Tensor:
        """Return the target of every query, int64 ``[L, B, Q]``: its object's logit column, or no object."""
        targets = torch.full(logits.shape[:3], self._no_object(logits), dtype=torch.int64, device=logits.device)
        layers = torch.arange(logits.shape[0], device=logits.device)[:, None]
        targets[layers, matches.images, matches.queries] = logit_index[matches.objects]
        return targets

    def _class_loss(self, logits: Tensor, target_index: Tensor, scores: Tensor | None) -> Tensor:
        """Return the weighted class loss of each query ``[...]``."""
        weights = torch.where(target_index == self._no_object(logits), self.no_object_weight, 1.0)
        return self.scoring.losses(logits, target_index, scores) * weights

    def _class_error(self, last: LastLayer, target_index: Tensor) -> Tensor:
        """Return the share of matched queries whose best class is wrong, 0 to 1; 0 without objects."""
        best = last.logits[..., : self._no_object(last.logits)].argmax(-1)
        return ((best != target_index) & last.matched).sum() / last.matched.sum().clamp(min=1)


def l1_loss(boxes_cxcywh: Tensor, target_cxcywh: Tensor) -> Tensor:
    """Return the summed L1 distance of matched boxes ``[L, M, 4]`` (paper equation 9), ``[L]``."""
    return (boxes_cxcywh.float() - target_cxcywh).abs().sum(dim=(1, 2))


def giou_loss(boxes_cxcywh: Tensor, target_cxcywh: Tensor) -> Tensor:
    """Return the summed 1 - GIoU of matched boxes ``[L, M, 4]`` (paper equation 10), ``[L]``.

    torchvision's ``generalized_box_iou_loss`` indexes by a mask, for which the host waits for the device.
    """
    giou = broadcast_giou(cxcywh_to_xyxy(boxes_cxcywh.float()), cxcywh_to_xyxy(target_cxcywh))
    return (1 - giou).sum(dim=1)


def _last_only(outputs: Outputs) -> Outputs:
    """Drop the layers before the last; tokens that become queries are always taught."""
    kept = [0, -1] if outputs.proposes else [-1]
    groups, denoised, edges = outputs.groups, outputs.denoised, outputs.edges
    if edges is not None:
        edges = edges._replace(logits=edges.logits[-1:])
    if groups is not None:
        groups = GroupOutputs(groups.logits[-1:], groups.boxes_cxcywh[-1:])
    if denoised is not None:
        denoised = denoised._replace(logits=denoised.logits[-1:], boxes_cxcywh=denoised.boxes_cxcywh[-1:])
        if denoised.edges is not None:
            denoised = denoised._replace(edges=denoised.edges._replace(logits=denoised.edges.logits[-1:]))
    logits, boxes = (
        torch.stack([part[place] for place in kept]) for part in (outputs.logits, outputs.boxes_cxcywh)
    )
    return Outputs(logits, boxes, outputs.dense, groups, denoised, edges=edges, masks=outputs.masks)


def _join_groups(outputs: Outputs) -> Outputs:
    """Join every layer of every set of queries as a layer of its own, the model's own set first."""
    if outputs.groups is None:
        return outputs
    logits, boxes = (part.transpose(1, 2).flatten(0, 1) for part in outputs.groups)  # [L * G, B, Q, ...]
    return Outputs(torch.cat((outputs.logits, logits)), torch.cat((outputs.boxes_cxcywh, boxes)))
