from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.curation.check import check_data, examine
from detrkit.curation.check.panoptic import read_segments
from detrkit.curation.fix import Loss, fix_data

SIDE = 40


class PanopticSet:
    """Four images with three segments each beside their boxes; saved when it is checked."""

    def __init__(self, root: Path):
        self.root = root
        random = np.random.default_rng(0)
        images, entries, boxes = [], [], []
        for number in range(1, 5):
            pixels = random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
            (root / "train2017").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / "train2017" / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
            ids = np.zeros((SIDE, SIDE), dtype=np.int64)
            ids[:20], ids[20:, :15], ids[25:, 20:] = 70000, 300, 5
            self.write(number, ids)
            segments = [
                {"id": 70000, "category_id": 2, "area": 800, "bbox": [0, 0, 40, 20], "iscrowd": 0},
                {"id": 300, "category_id": 1, "area": 300, "bbox": [0, 20, 15, 20], "iscrowd": 0},
                {"id": 5, "category_id": 1, "area": 300, "bbox": [20, 25, 20, 15], "iscrowd": 0},
            ]
            entries.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
            boxes += [
                {"id": len(boxes) + 1 + at, "image_id": number, **one} for at, one in enumerate(segments[1:])
            ]
            for box in boxes[-2:]:
                box["id"] = boxes.index(box) + 1
        self.categories = [
            {"id": 1, "name": "thing", "isthing": 1},
            {"id": 2, "name": "sky", "isthing": 0},
        ]
        self.panoptic: dict[str, Any] = {"images": images, "annotations": entries, "categories": self.categories}
        instances = {"images": images, "annotations": boxes, "categories": self.categories[:1]}
        (root / "annotations" / "instances_train2017.json").write_text(json.dumps(instances))

    def write(self, number: int, ids: np.ndarray) -> None:
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        folder = self.root / "annotations" / "panoptic_train2017"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colors).save(folder / f"{number}.png")

    def ids(self, number: int) -> np.ndarray:
        path = self.root / "annotations" / "panoptic_train2017" / f"{number}.png"
        colors = np.asarray(Image.open(path)).astype(np.int64)
        return colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]

    @property
    def first(self) -> dict[str, Any]:
        segments: dict[str, Any] = self.panoptic["annotations"][0]["segments_info"][1]
        return segments

    def save(self) -> None:
        (self.root / "annotations" / "panoptic_train2017.json").write_text(json.dumps(self.panoptic))


@pytest.fixture
def panoptic(tmp_path: Path) -> PanopticSet:
    (tmp_path / "set" / "annotations").mkdir(parents=True)
    return PanopticSet(tmp_path / "set")


def test_a_sound_set_is_clean(panoptic):
    panoptic.save()
    result = check_data(panoptic.root)
    assert result.is_clean, result.lines()


def renamed(panoptic):
    panoptic.first["id"] = 301


def unlisted(panoptic):
    ids = panoptic.ids(1)
    ids[38, 2:5] = 999
    panoptic.write(1, ids)
    panoptic.first["area"] -= 3


def twice(panoptic):
    panoptic.panoptic["annotations"][0]["segments_info"].append(dict(panoptic.first))


def other_size(panoptic):
    panoptic.write(1, panoptic.ids(1)[:, :30])
    panoptic.first["area"] = 300


def no_png(panoptic):
    (panoptic.root / "annotations" / "panoptic_train2017" / "1.png").unlink()


FAULTS = {
    "renamed": (renamed, {"panoptic_segment_missing": 1, "panoptic_segment_unlisted": 1}),
    "pixels of no segment": (unlisted, {"panoptic_segment_unlisted": 1}),
    "listed twice": (twice, {"panoptic_duplicate_segment": 1}),
    "unknown category": (lambda p: p.first.update(category_id=7), {"panoptic_unknown_category": 1}),
    "area": (lambda p: p.first.update(area=500), {"panoptic_area_mismatch": 1}),
    "box": (lambda p: p.first.update(bbox=[5, 20, 15, 20]), {"panoptic_box_mismatch": 1}),
    "no PNG": (no_png, {"panoptic_png_missing": 1}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_named_and_repaired(name, panoptic, tmp_path):
    spoil, expected = FAULTS[name]
    spoil(panoptic)
    panoptic.save()
    checked = examine(panoptic.root)
    found = {one.kind: one.count for one in checked.result.findings if one.severity != "note"}
    assert found == expected
    fixed = fix_data(checked, tmp_path / "fixed")
    assert fixed.after.is_clean, fixed.after.lines()
    assert Loss("panoptic_train2017", "panoptic masks", 4, 4) in fixed.losses


def test_masks_of_another_size_than_their_image_are_told_of(panoptic):
    other_size(panoptic)
    panoptic.save()
    assert check_data(panoptic.root).count("panoptic_size_mismatch") == 1


def test_file_names_outside_the_mask_folder_are_not_opened(panoptic):
    panoptic.panoptic["annotations"][0]["file_name"] = "../../set/train2017/1.png"
    panoptic.save()
    result = check_data(panoptic.root)
    assert result.count("panoptic_png_missing") == 1


def test_segments_are_measured_as_pixels_lie(panoptic):
    segments = read_segments(panoptic.root / "annotations" / "panoptic_train2017" / "1.png")
    assert segments.ids.tolist() == [5, 300, 70000]
    assert segments.pixels.tolist() == [300, 300, 800]
    assert segments.boxes_xywh.tolist() == [[20, 25, 20, 15], [0, 20, 15, 20], [0, 0, 40, 20]]
    assert segments.size_hw == (SIDE, SIDE)
