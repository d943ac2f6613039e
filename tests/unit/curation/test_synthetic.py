from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from detrkit.curation.synthetic import SHAPES, draw_scene, write_synthetic
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
        with_object, objects = draw_scene(np.random.Generator(random_state), 128, max_objects=1)
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
