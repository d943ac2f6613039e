"""Labels of other toolkits' networks as classes, and their detections with them.

Shapes: K detections of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from detrkit.classes import COCO_NAMES, COCO_SPELLINGS, ClassMap
from detrkit.types import ImageDetections

NOT_A_CLASS = frozenset({"", "N/A", "__background__", "background", "no person", "no-object"})
"""Of COCO's 91 slots, 11 are no class; background and the like never are."""


def class_map_of_labels(names: Mapping[int, str]) -> tuple[ClassMap, np.ndarray]:
    """Return the classes behind a network's labels, and the class id of each label, -1 for none, int64.

    Labels of COCO's 80 classes in other spellings get COCO's; else they would match no annotation.

    Args:
        names: Name of each label, as the toolkit has it.
    """
    kept = {label: name for label, name in sorted(names.items()) if name not in NOT_A_CLASS}
    renamed = {label: COCO_SPELLINGS.get(name, name) for label, name in kept.items()}
    if sorted(renamed.values()) == sorted(COCO_NAMES):
        kept = renamed
    classes: np.ndarray = np.full(max(names, default=-1) + 1, -1, dtype=np.int64)
    classes[list(kept)] = np.arange(len(kept))
    return ClassMap(tuple(kept.values()), tuple(kept)), classes


def labelled_detections(
    boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, classes: np.ndarray
) -> ImageDetections:
    """Make detections of one image, best first, of a network's tensors.

    Args:
        boxes_xyxy: ``[K, 4]``, pixels of the image's file.
        scores: ``[K]``.
        labels: The network's own labels, ``[K]``.
        classes: Class id of each label, -1 for a label that is no class, such as background; int64.
    """
    class_ids = classes[labels.cpu().numpy()]
    all_scores = scores.float().cpu().numpy()
    order = np.argsort(-all_scores, kind="stable")
    order = order[class_ids[order] >= 0]
    return ImageDetections(boxes_xyxy.float().cpu().numpy()[order], all_scores[order], class_ids[order])


def to_device(images: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Move images to a device, without waiting for each copy."""
    return [image.to(device, non_blocking=True) for image in images]
