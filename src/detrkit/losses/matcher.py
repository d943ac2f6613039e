"""Bipartite matching between queries and objects (paper section 3.1, equation 1).

All decoder layers and all images go through one cost tensor and one transfer to the host.

Shapes: L layers, B images, Q queries, N objects of the batch, M = sum over images of min(objects, Q),
S classes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrkit.losses.scoring import SOFTMAX, ClassScoring
from detrkit.ops.boxes import broadcast_giou, cxcywh_to_xyxy
from detrkit.types import GroundTruth, Outputs

# Stands for a cost that is not finite: such a pair is chosen only where nothing else is left.
_WORST_COST = 1e6


@dataclasses.dataclass(frozen=True)
class Matches:
    """Pairs of query and object; every layer has the same number M of them.

    Args:
        images: int64 ``[L, M]``, the image of each pair.
        queries: int64 ``[L, M]``, the query of each pair.
        objects: int64 ``[L, M]``, the object's place in the batch's packed ground truth.
        pairs: The same on the host, int64 ``[3, L, M]``.
    """

    images: Tensor
    queries: Tensor
    objects: Tensor
    pairs: np.ndarray


@dataclasses.dataclass(frozen=True)
class HungarianMatcher:
    """Chooses for each image and layer the assignment of objects to queries with the least total cost.

    The cost is that of the class, L1 between normalised cxcywh boxes and -GIoU, each with its weight. An image
    with more objects than queries leaves the costliest objects unmatched.
    """

    class_cost: float = 1.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0
    scoring: ClassScoring = SOFTMAX

    @torch.no_grad()
    def __call__(self, outputs: Outputs, truth: GroundTruth, logit_index: Tensor) -> Matches:
        """Match every layer.

        Args:
            outputs: Predictions of L layers.
            truth: The batch's objects.
            logit_index: int64 ``[N]``, the logit column of each object's class.
        """
        cost = self.costs(outputs, truth, logit_index).cpu().numpy()  # the one host transfer of a step
        device = outputs.logits.device
        assigned = _assign(cost, truth.counts)
        pairs = torch.from_numpy(assigned)
        if device.type == "cuda":
            pairs = pairs.pin_memory()
        images, queries, objects = pairs.to(device, non_blocking=True)
        return Matches(images, queries, objects, assigned)

    @torch.no_grad()
    def costs(self, outputs: Outputs, truth: GroundTruth, logit_index: Tensor) -> Tensor:
        """Compute the cost of every object with every query of its image, ``[L, N, Q]`` float32, all finite."""
        counts = torch.tensor(truth.counts)
        image_of = torch.repeat_interleave(torch.arange(len(truth.counts)), counts)
        image_of = image_of.to(outputs.logits.device, non_blocking=True)
        # [L, B, Q, S] -> [N, L, Q]: each object looks at its own image and class only
        class_part = self.scoring.costs(outputs.logits).permute(1, 3, 0, 2)[image_of, logit_index].transpose(0, 1)
        predicted = outputs.boxes_cxcywh.float().index_select(1, image_of)
        wanted = truth.boxes_cxcywh[None, :, None, :]
        l1_part = (predicted - wanted).abs().sum(-1)
        giou_part = broadcast_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))
        cost = self.l1_cost * l1_part + self.class_cost * class_part - self.giou_cost * giou_part
        return cost.nan_to_num(nan=_WORST_COST, posinf=_WORST_COST, neginf=_WORST_COST)


def _assign(cost: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    """Solve ``[L, N, Q]`` block by block; returns int64 ``[3, L, M]``: image, query, object."""
    num_layers = cost.shape[0]
    found: list[np.ndarray] = []
    start = 0
    for image, count in enumerate(counts):
        if count == 0:
            continue
        block = cost[:, start : start + count]
        pairs = [linear_sum_assignment(block[layer]) for layer in range(num_layers)]
        objects = np.stack([rows for rows, _ in pairs]) + start
        queries = np.stack([columns for _, columns in pairs])
        found.append(np.stack((np.full_like(queries, image), queries, objects)))
        start += count
    if not found:
        return np.zeros((3, num_layers, 0), dtype=np.int64)
    return np.concatenate(found, axis=2).astype(np.int64, copy=False)
