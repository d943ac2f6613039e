from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.curation.check import check_data, examine
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
            boxes += [{**one, "id": len(boxes) + at, "image_id": number} for at, one in enumerate(segments[1:], 1)]
        self.categories = [{"id": 1, "name": "thing", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
        self.panoptic: dict[str, Any] = {"images": images, "annotations": entries, "categories": self.categories}
        instances = {"images": images, "annotations": boxes, "categories": self.categories[:1]}
        (root / "annotations" / "instances_train2017.json").write_text(json.dumps(instances))

    def write(self, number: int, ids: np.ndarray) -> None:
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        self.png(number).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colors).save(self.png(number))

    def png(self, number: int) -> Path:
        return self.root / "annotations" / "panoptic_train2017" / f"{number}.png"

    def ids(self, number: int) -> np.ndarray:
        colors = np.asarray(Image.open(self.png(number))).astype(np.int64)
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


def unlisted(panoptic):
    ids = panoptic.ids(1)
    ids[38, 2:5] = 999
    panoptic.write(1, ids)
    panoptic.first["area"] -= 3


def twice(panoptic):
    panoptic.panoptic["annotations"][0]["segments_info"].append(dict(panoptic.first))


FAULTS = {
    "renamed": (lambda p: p.first.update(id=301), {"panoptic_segment_missing": 1, "panoptic_segment_unlisted": 1}),
    "pixels of no segment": (unlisted, {"panoptic_segment_unlisted": 1}),
    "listed twice": (twice, {"panoptic_duplicate_segment": 1}),
    "unknown category": (lambda p: p.first.update(category_id=7), {"panoptic_unknown_category": 1}),
    "area": (lambda p: p.first.update(area=500), {"panoptic_area_mismatch": 1}),
    "box": (lambda p: p.first.update(bbox=[5, 20, 15, 20]), {"panoptic_box_mismatch": 1}),
    "other size": (lambda p: p.write(1, p.ids(1)[:, :30]), {"panoptic_size_mismatch": 1}),
    "no PNG": (lambda p: p.png(1).unlink(), {"panoptic_png_missing": 1}),
    "gray PNG": (lambda p: Image.fromarray(p.ids(1).astype(np.uint8)).save(p.png(1)), {"panoptic_png_missing": 1}),
    "two entries": (
        lambda p: p.panoptic["annotations"].append(p.panoptic["annotations"][0]),
        {"panoptic_image_twice": 1},
    ),
    "thing or stuff": (lambda p: p.categories[0].pop("isthing"), {"panoptic_isthing_missing": 1}),
    "stuff twice": (lambda p: p.first.update(category_id=2), {"panoptic_stuff_split": 1}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_named(name, panoptic):
    spoil, expected = FAULTS[name]
    spoil(panoptic)
    panoptic.save()
    result = check_data(panoptic.root)
    assert {one.kind: one.count for one in result.findings if one.severity != "note"} == expected


def test_void_and_pictures_of_nothing_are_noted(panoptic):
    panoptic.write(7, panoptic.ids(1))
    ids = panoptic.ids(1)
    panoptic.write(1, np.where(ids == 300, ids, 0))
    panoptic.panoptic["annotations"][0]["segments_info"][:] = [panoptic.first]
    panoptic.save()
    notes = {one.kind: one.shown for one in check_data(panoptic.root).findings if "panoptic" in one.kind}
    places = {"panoptic_void": "1.png: 81 % of the pixels", "panoptic_png_unlisted": "7.png"}
    assert notes == {kind: f"panoptic_train2017: {place}" for kind, place in places.items()}


def test_a_repaired_copy_has_no_panoptic_masks_and_says_so(panoptic, tmp_path):
    panoptic.first["area"] = 500
    panoptic.save()
    fixed = fix_data(examine(panoptic.root), tmp_path / "fixed")
    assert fixed.is_clean
    assert fixed.losses == (Loss("panoptic_train2017", "panoptic masks", 4, 4),)


def test_file_names_outside_the_mask_folder_are_not_opened(panoptic):
    panoptic.panoptic["annotations"][0]["file_name"] = "../../set/train2017/1.png"
    panoptic.save()
    result = check_data(panoptic.root)
    assert result.count("panoptic_png_missing") == 1


@pytest.mark.parametrize("odd", [[[1]], {"a": 1}])
def test_ids_that_are_lists_or_objects_are_named_not_a_traceback(odd, panoptic):
    for entry, key in ((panoptic.panoptic["annotations"][0], "image_id"), (panoptic.first, "id")):
        entry[key] = odd
    panoptic.save()
    kinds = {finding.kind for finding in check_data(panoptic.root).findings}
    assert {"unknown_image_id", "panoptic_segment_unlisted"} <= kinds
