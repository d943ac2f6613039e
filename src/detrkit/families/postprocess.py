"""From a DETR's outputs to detections: one per query, no suppression (paper section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from detrkit.classes import ClassMap, SizeHW
from detrkit.detections import MaskedDetections
from detrkit.losses.scoring import SOFTMAX, ClassScoring
from detrkit.masks import ImageMasks
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.types import ImageDetections, Outputs, QueryMasks


def rank_detections(
    logits: Tensor, boxes_cxcywh: Tensor, logit_index: Tensor, scoring: ClassScoring = SOFTMAX
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores ``[B, Q]``, class ids int64 ``[B, Q]`` and boxes cxcywh ``[B, Q, 4]``, best first.

    Tensors alone, as every export needs it.

    Args:
        logits: Of the last layer, ``[B, Q, S + 1]``.
        boxes_cxcywh: Of the last layer, ``[B, Q, 4]``.
        logit_index: Row of the head for each class, int64.
        scoring: What the logits mean.
    """
    scores, class_ids, order = rank_queries(logits, logit_index, scoring)
    return scores, class_ids, boxes_cxcywh.gather(1, order[..., None].expand(-1, -1, 4))


def rank_queries(logits: Tensor, logit_index: Tensor, scoring: ClassScoring) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, class ids and numbers of the queries, best first."""
    scores, class_ids = scoring.scores(logits).index_select(-1, logit_index).max(-1)
    if torch.compiler.is_exporting():  # ONNX's TopK puts the lower index first among equals, as a stable sort does
        scores, order = scores.topk(scores.shape[1])
    else:
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
    return scores, class_ids.gather(1, order), order


@torch.no_grad()
def postprocess(
    outputs: Outputs,
    orig_sizes_hw: Sequence[SizeHW],
    class_map: ClassMap,
    scoring: ClassScoring = SOFTMAX,
    rank: Callable[..., tuple[Tensor, Tensor, Tensor]] = rank_detections,
) -> list[ImageDetections]:
    """Return the detections of the last layer, best first.

    A query's score is its best class's, of the softmax over all slots and no-object where scoring is as
    published. Slots that no class uses (COCO's gaps) keep their share but are never chosen. Boxes are not
    clipped.

    Args:
        outputs: Predictions; only the last layer counts.
        orig_sizes_hw: Size of each image file, (height, width) in pixels.
        class_map: Which slot is which class.
        scoring: What the logits mean.
        rank: Chooses scores, class ids and boxes.

    Returns:
        For each image exactly one detection per query, in pixels of the original file; with their masks if there
        are any, which are computed when they are asked for and hold on to the batch's outputs until then.
    """
    device = outputs.logits.device
    logit_index = torch.tensor(class_map.logit_index, device=device)
    scores, class_ids, boxes = rank(outputs.logits[-1], outputs.boxes_cxcywh[-1], logit_index, scoring)
    scale = torch.tensor([(w, h, w, h) for h, w in orig_sizes_hw], device=device, dtype=torch.float32)
    boxes = cxcywh_to_xyxy(boxes) * scale[:, None]
    host_boxes, host_scores, host_ids = (part.cpu().numpy() for part in (boxes, scores, class_ids))
    found = [ImageDetections(*image) for image in zip(host_boxes, host_scores, host_ids, strict=True)]
    if outputs.masks is None:
        return found
    queries = rank_queries(outputs.logits[-1], logit_index, scoring)[2].cpu().numpy()
    regions = outputs.masks.regions.transpose(0, 1).tolist()
    return [
        MaskedDetections.join(detections, _image_masks(outputs.masks, number, queries[number], sizes, size_hw))
        for number, (detections, sizes, size_hw) in enumerate(zip(found, regions, orig_sizes_hw, strict=True))
    ]


def _image_masks(
    masks: QueryMasks, number: int, queries: np.ndarray, region: list[SizeHW], size_hw: SizeHW
) -> ImageMasks:
    """Return the masks of one image of a batch, for its queries in the order of its detections."""
    (height, width), pixels_hw, seen_hw = region

    def compute(queries: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            rows = torch.from_numpy(queries).to(masks.regions.device)
            found: np.ndarray = masks(torch.full_like(rows, number), rows)[:, :height, :width].cpu().numpy()
        return found

    return ImageMasks(compute, queries, (height, width), pixels_hw, seen_hw, size_hw)
