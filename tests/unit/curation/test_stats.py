"""The numbers of a data set."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hotcoco import COCO

from detrkit.curation.stats import HEAT_CELLS, Distribution, dataset_stats, measure, split_stats
from detrkit.data.read import read_coco
from tests.unit.data.factory import make_index


def stats_of(*arguments, **options):
    return split_stats(measure([make_index(*arguments, **options)]))


def test_images_objects_and_classes_are_counted_and_crowds_apart():
    small, wide = (0, 0, 10, 10), (0, 0, 200, 50)
    found = stats_of([[(0, small), (0, wide), (1, small)], [], [(0, small), (2, small)]], crowd=[0, 0, 0, 0, 1])
    assert (found.images, found.empty_images, found.objects, found.crowds) == (3, 1, 4, 1)
    assert [(entry.name, entry.objects, entry.images, entry.crowds) for entry in found.classes] == [
        ("cat", 3, 2, 0),
        ("dog", 1, 1, 0),
        ("fox", 0, 0, 1),
    ]
    assert [entry.median_side for entry in found.classes] == [10, 10, 0]
    assert found.imbalance == 3
    assert found.objects_per_image.greatest == 3
    assert found.objects_per_image.mean == pytest.approx(4 / 3)


def test_sizes_go_by_annotated_area_with_cocos_limits():
    box = (0, 0, 100, 100)
    found = stats_of([[(0, box)] * 4], area=[1023.9, 1024, 9215.9, 9216])
    assert (found.small, found.medium, found.large) == (1, 2, 1)


def test_a_data_set_without_objects_has_numbers():
    stats = dataset_stats({"train": make_index([[], []])})
    assert stats.splits["train"].empty_images == 2
    assert stats.splits["train"].imbalance == 0
    assert stats.splits["train"].aspect == Distribution(*[0.0] * 8)
    values = json.loads(json.dumps(stats.to_dict(), allow_nan=False))["splits"]["train"]
    assert np.shape(values["center_heat"]) == (HEAT_CELLS, HEAT_CELLS)
    assert values["image_sizes"] == [{"height": 100, "width": 200, "images": 2}]
    crowd = make_index([[(0, (0, 0, 9, 9))]], crowd=[True])
    assert dataset_stats({"train": crowd}).splits["train"].empty_images == 1


def test_splits_are_joined_by_class_name():
    box = (0, 0, 10, 10)
    train = make_index([[(0, box), (1, box)]], names=("cat", "dog"))
    val = make_index([[(0, box)], [(1, box), (1, box)]], names=("dog", "fox"))
    stats = dataset_stats({"train": train, "val": val})
    counts = {name: {e.name: e.objects for e in split.classes} for name, split in stats.splits.items()}
    assert counts["all"] == {"cat": 1, "dog": 2, "fox": 2}
    assert counts["val"] == {"dog": 1, "fox": 2}
    assert stats.splits["all"].images == 3


def test_what_deserves_attention_is_said():
    box = (0, 0, 10, 10)
    train = make_index([[(0, box)] * 30, [(1, box)]])
    advice = "\n".join(dataset_stats({"train": train, "val": train}, num_queries=20).advice)
    assert "without any object in train, and so never learned: fox" in advice
    assert "fewer than 20 objects in train, hard to learn: dog" in advice
    assert "without any object in val, and so not measured there: fox" in advice
    assert "an image of train holds 30 objects, more than the 20 queries" in advice
    sound = make_index([[(label, box)] for label in (0, 1, 2) for _ in range(20)])
    assert dataset_stats({"train": sound}, num_queries=20).advice == ()


def test_numbers_agree_with_hotcoco_on_real_annotations(shared_data: Path):
    root = shared_data / "coco_mini"
    annotations = root / "annotations" / "instances_train2017.json"
    theirs = COCO(str(annotations)).stats()
    index, _ = read_coco(annotations, root / "train2017")
    ours = split_stats(measure([index]))
    assert ours.images == theirs["image_count"]
    assert ours.objects + ours.crowds == theirs["annotation_count"]
    assert ours.crowds == theirs["crowd_count"]
    assert ours.image_width.mean == pytest.approx(theirs["image_width"]["mean"])
    assert ours.image_height.median == pytest.approx(theirs["image_height"]["median"])
    by_id = {entry["id"]: entry for entry in theirs["per_category"]}
    assert len(by_id) == len(ours.classes) == 80
    for entry in ours.classes:
        assert entry.objects + entry.crowds == by_id[entry.category_id]["ann_count"]
        assert entry.crowds == by_id[entry.category_id]["crowd_count"]
    everything = measure([dataclasses.replace(index, iscrowd=np.zeros_like(index.iscrowd))])
    assert np.median(everything.area) == pytest.approx(theirs["annotation_area"]["median"])
    assert {e.category_id: e.images for e in split_stats(everything).classes} == {
        key: entry["img_count"] for key, entry in by_id.items()
    }
