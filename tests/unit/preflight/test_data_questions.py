from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.data.formats.coco.read import load_coco_table
from detrkit.preflight.data_questions import check_category_ids
from tests.unit.data.factory import annotation, coco, image_entry, write

ROBOFLOW = [
    {"id": 0, "name": "pieces", "supercategory": "none"},
    {"id": 1, "name": "king", "supercategory": "pieces"},
    {"id": 2, "name": "queen", "supercategory": "pieces"},
    {"id": 3, "name": "rook", "supercategory": "pieces"},
]
GROUPS = [
    {"id": 0, "name": "person", "supercategory": "person"},
    {"id": 1, "name": "hat", "supercategory": "person"},
    {"id": 2, "name": "bag", "supercategory": "thing"},
]


def names(folder: Path, categories: list[dict[str, object]], used: list[int]) -> list[str]:
    entries = [annotation(number, category_id=category_id) for number, category_id in enumerate(used)]
    table = load_coco_table(write(folder, coco([image_entry()], entries, categories)))
    return [result.name for result in check_category_ids("train", table)]


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        ([1, 2, 3], []),
        ([0, 1, 2], ["class_ids_off_by_one"]),  # fits the list, but the heading has objects
        ([2, 3, 4], ["class_ids_off_by_one"]),
        ([0, 1], []),  # too little to say so
        ([1, 99], []),  # unknown, but not by one
    ],
)
def test_roboflow_ids_that_are_off_by_one(used: list[int], expected: list[str], tmp_path: Path):
    assert names(tmp_path, ROBOFLOW, used) == expected


def test_a_category_that_heads_only_some_others_may_have_objects(tmp_path: Path):
    assert names(tmp_path, GROUPS, [0, 1]) == []
