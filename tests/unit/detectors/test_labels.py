from __future__ import annotations

from detrkit.classes import COCO_NAMES
from detrkit.detectors.labels import class_map_of_labels


def test_labels_that_are_no_class_get_none_and_the_others_keep_their_ids():
    class_map, classes = class_map_of_labels({0: "__background__", 1: "person", 2: "N/A", 3: "car"})
    assert class_map.names == ("person", "car")
    assert class_map.category_ids == (1, 3)
    assert classes.tolist() == [-1, 0, -1, 1]


def test_coco_in_the_spelling_of_pascal_voc_becomes_coco():
    old = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "potted plant": "pottedplant"}
    old |= {"dining table": "diningtable", "tv": "tvmonitor"}
    class_map, _ = class_map_of_labels({i: old.get(name, name) for i, name in enumerate(COCO_NAMES)})
    assert class_map.names == COCO_NAMES
