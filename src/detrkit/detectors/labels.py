"""What other toolkits call their labels, as classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from detrkit.classes import ClassMap
from detrkit.curation.fetch.coco_names import COCO_NAMES

NOT_A_CLASS = frozenset({"", "N/A", "__background__", "background", "no person", "no-object"})
"""Of COCO's 91 slots, 11 are no class; background and the like never are."""

_OLD_COCO_NAMES = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "potted_plant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}
"""Pascal VOC's spellings, which the published RT-DETR and others use for COCO's classes."""


def class_map_of_labels(names: Mapping[int, str]) -> tuple[ClassMap, np.ndarray]:
    """The classes behind a network's labels, and the class id of each label, -1 for none, int64.

    Labels of COCO's 80 classes in other spellings get COCO's; else they would match no annotation.

    Args:
        names: Of each label, as the toolkit has it.
    """
    kept = {label: name for label, name in sorted(names.items()) if name not in NOT_A_CLASS}
    renamed = {label: _OLD_COCO_NAMES.get(name, name) for label, name in kept.items()}
    if sorted(renamed.values()) == sorted(COCO_NAMES):
        kept = renamed
    classes: np.ndarray = np.full(max(names, default=-1) + 1, -1, dtype=np.int64)
    classes[list(kept)] = np.arange(len(kept))
    return ClassMap(tuple(kept.values()), tuple(kept)), classes
