from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from detrkit.curation.check import check_data
from detrkit.curation.synthetic import SHAPES, STUFF, draw_scene, write_synthetic
from detrkit.data.formats import find_split
from detrkit.data.read import read_coco


def test_written_set_is_sound_and_found(tmp_path: Path) -> None:
    root = write_synthetic(tmp_path / "set", 30, 10, size=96, seed=4)
    for split, count in (("train", 30), ("val", 10)):
        files = find_split(root, split)
        index, report = read_coco(files.annotations, files.images, on_bad_image="error")
        assert report.is_sound
        assert len(index) == count
        assert index.class_map.names == SHAPES
        assert index.class_map.category_ids == (1, 2, 3, 4, 5, 6)


def test_same_seed_gives_the_same_bytes_and_more_images_change_none(tmp_path: Path) -> None:
    first = write_synthetic(tmp_path / "a", 4, 2, size=64, seed=7)
    second = write_synthetic(tmp_path / "b", 6, 2, size=64, seed=7)
    other = write_synthetic(tmp_path / "c", 4, 2, size=64, seed=8)
    for name in ("train2017/000001.jpg", "train2017/000004.jpg", "val2017/000002.jpg"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert (first / name).read_bytes() != (other / name).read_bytes()
    assert (first / "train2017/000001.jpg").read_bytes() != (first / "val2017/000001.jpg").read_bytes()
    annotations = [
        json.loads((root / "annotations/instances_val2017.json").read_text()) for root in (first, second)
    ]
    assert annotations[0] == annotations[1]


def test_box_holds_all_of_its_object_and_nothing_more() -> None:
    for number in range(60):
        random_state = np.random.PCG64(number)
        with_object, objects, *_ = draw_scene(np.random.Generator(random_state), 128, max_objects=1)
        if not objects:
            continue
        # the same background, without the object: it is drawn before anything about objects is
        background = draw_scene(np.random.Generator(np.random.PCG64(number)), 128, max_objects=0)[0]
        changed = np.abs(with_object.astype(int) - background.astype(int)).max(axis=2) > 0
        (_, (x, y, width, height)) = objects[0]
        inside = changed[y : y + height, x : x + width]
        assert changed.sum() == inside.sum()
        assert inside.any(axis=0).mean() > 0.9
        assert inside.any(axis=1).mean() > 0.9


def test_masks_are_the_pixels_that_are_seen_of_each_object() -> None:
    for number in range(20):
        with_object, alone = (
            draw_scene(np.random.Generator(np.random.PCG64(number)), 96, max_objects=count, stuff=True)
            for count in (6, 0)
        )
        changed = np.abs(with_object.pixels.astype(int) - alone.pixels.astype(int)).max(axis=2) > 0
        assert (changed | (with_object.shown == 0)).mean() > 0.999
        np.testing.assert_array_equal(with_object.stuff, alone.stuff)
        for at, (_, (x, y, width, height)) in enumerate(with_object.objects, start=1):
            seen = with_object.shown == at
            assert seen[y : y + height, x : x + width].sum() == seen.sum() > 0


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools'
def test_panoptic_files_and_instances_tell_the_same(tmp_path: Path) -> None:
    root = write_synthetic(tmp_path / "set", 12, 3, size=64, seed=2, masks=True)
    boxes, panoptic = (
        json.loads((root / f"annotations/{kind}_train2017.json").read_text()) for kind in ("instances", "panoptic")
    )
    assert [entry["name"] for entry in boxes["categories"]] == list(SHAPES)
    assert [(entry["name"], entry["isthing"]) for entry in panoptic["categories"]] == [
        *((name, 1) for name in SHAPES),
        *((name, 0) for name in STUFF),
    ]
    kinds = set()
    for entry in panoptic["annotations"]:
        colors = np.asarray(Image.open(root / "annotations/panoptic_train2017" / entry["file_name"])).astype(int)
        ids = colors @ (1, 256, 65536)
        segments = {info["id"]: info for info in entry["segments_info"]}
        assert set(np.unique(ids)) == set(segments)  # no void
        kinds |= {info["category_id"] for info in segments.values()}
        objects = [one for one in boxes["annotations"] if one["image_id"] == entry["image_id"]]
        things = [info for info in segments.values() if info["category_id"] <= len(SHAPES)]
        assert len(objects) == len(things)
        for one, info in zip(objects, things, strict=True):
            mask = rle.decode(one["segmentation"])
            np.testing.assert_array_equal(mask, ids == info["id"])
            assert (one["bbox"], one["area"]) == (rle.toBbox(one["segmentation"]).tolist(), mask.sum())
    assert kinds == set(range(1, 10))
    assert not [one for one in check_data(root).findings if one.severity != "note"]
