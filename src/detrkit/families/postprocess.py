"""From a DETR's outputs to detections: one per query, no suppression (paper section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detrkit.classes import ClassMap, SizeHW
from detrkit.losses.scoring import SOFTMAX, ClassScoring
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.types import ImageDetections, Outputs


@torch.no_grad()
def postprocess(
    outputs: Outputs, orig_sizes_hw: Sequence[SizeHW], class_map: ClassMap, scoring: ClassScoring = SOFTMAX
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

    Returns:
        For each image exactly one detection per query, in pixels of the original file.
    """
    device = outputs.logits.device
    logit_index = torch.tensor(class_map.logit_index, device=device)
    probabilities = scoring.scores(outputs.logits[-1]).index_select(-1, logit_index)
    scores, class_ids = probabilities.max(-1)
    scale = torch.tensor([(w, h, w, h) for h, w in orig_sizes_hw], device=device, dtype=torch.float32)
    boxes = cxcywh_to_xyxy(outputs.boxes_cxcywh[-1]) * scale[:, None]
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    class_ids = class_ids.gather(1, order)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    host_boxes, host_scores, host_ids = (part.cpu().numpy() for part in (boxes, scores, class_ids))
    return [ImageDetections(*image) for image in zip(host_boxes, host_scores, host_ids, strict=True)]
