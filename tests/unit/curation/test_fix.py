from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.curation.check import examine
from detrkit.curation.fix import FixResult, Loss, fix_data
from detrkit.errors import DataError


class Small:
    """Two noisy images of 60 x 40 pixels with one object each."""

    def __init__(self, root: Path):
        self.root = root
        random = np.random.default_rng(0)
        (root / "train").mkdir(parents=True)
        self.content: dict[str, Any] = {"info": {"year": 2020}, "images": [], "annotations": []}
        self.content["categories"] = [{"id": 3, "name": "cat", "supercategory": "pet"}]
        for number in (1, 2):
            pixels = random.integers(0, 255, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / f"{number}.png")
            image = {"id": number, "file_name": f"{number}.png", "width": 60, "height": 40, "license": 5}
            self.content["images"].append(image)
            polygon = [[10, 10, 40, 10, 40, 30, 10, 30]]
            entry = {"id": number, "image_id": number, "category_id": 3, "bbox": [10, 10, 30, 20], "area": 600}
            self.content["annotations"].append({**entry, "iscrowd": 0, "segmentation": polygon, "score": 0.5})

    def fix(self, out: Path) -> tuple[FixResult, dict[str, Any]]:
        (self.root / "train.json").write_text(json.dumps(self.content))
        fixed = fix_data(examine(self.root), out)
        return fixed, json.loads((out / "annotations" / "instances_train.json").read_text())


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path / "set")


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_original_is_not_touched(small, tmp_path):
    small.content["annotations"][0]["bbox"] = [10, 10, 300, 20]
    small.content["images"][1]["file_name"] = "2.PNG"
    (small.root / "train.json").write_text(json.dumps(small.content))
    before = digests(small.root)
    small.fix(tmp_path / "out")
    assert digests(small.root) == before


def test_a_sound_set_is_copied_with_all_its_fields(small, tmp_path):
    fixed, content = small.fix(tmp_path / "out")
    assert (fixed.repaired, fixed.losses, fixed.unfit) == ({}, (), ())
    assert content == small.content


def test_what_was_repaired_and_lost_is_written_down(small, tmp_path):
    small.content["annotations"][0]["bbox"] = [10, 10, 0, 20]
    del small.content["annotations"][1]["segmentation"]
    small.content["annotations"][1]["bbox"] = [50, 10, 30, 20]
    fixed, content = small.fix(tmp_path / "out")
    assert fixed.repaired == {"box_empty": 1, "box_leaves_image": 1}
    assert fixed.losses == (Loss("train", "objects", 1, 2), Loss("train", "masks", 1, 1))
    record = json.loads((tmp_path / "out" / "changes.json").read_text())
    assert record["schema_version"] == 2
    assert {entry["kind"]: entry["counts"] for entry in record["repaired"]} == {
        "box_empty": {"train": 1},
        "box_leaves_image": {"train": 1},
    }
    assert record["lost"][0] == {"split": "train", "what": "objects", "lost": 1, "total": 2}
    text = (tmp_path / "out" / "changes.txt").read_text()
    assert "train: annotation 1 of 1.png: [10, 10, 0, 20]" in text
    assert "train: 1 of 2 objects are not in the copy" in text
    assert [entry["bbox"] for entry in content["annotations"]] == [[50, 10, 10, 20]]
    assert content["annotations"][0]["area"] == 200


@pytest.mark.parametrize(
    ("boxes", "classes", "reason"),
    [
        ([[10, 10, 0, 20], [10, 10, 30, 20]], [3, 4], "train: no object is left of 1 class: cat"),
        ([[10, 10, 0, 20], [10, 10, 30, 0]], [3, 3], "train: all of 2 objects are lost"),
    ],
)
def test_a_copy_without_a_class_or_a_split_is_not_fit(small, tmp_path, boxes, classes, reason):
    small.content["categories"].append({"id": 4, "name": "dog"})
    for entry, box, number in zip(small.content["annotations"], boxes, classes, strict=True):
        entry["bbox"], entry["category_id"] = box, number
    fixed, _ = small.fix(tmp_path / "out")
    assert fixed.after.is_clean or fixed.after.count("split_without_annotations") == 1
    assert not fixed.is_clean
    assert reason in fixed.unfit
    assert reason in (tmp_path / "out" / "changes.txt").read_text()


def test_a_copy_without_most_objects_is_not_fit(small, tmp_path):
    first = small.content["annotations"][0]
    small.content["annotations"] += [{**first, "id": 10 + at, "bbox": [10, 10, 0, at]} for at in range(3)]
    fixed, _ = small.fix(tmp_path / "out")
    assert fixed.unfit == ("train: 3 of 5 objects are lost",)


def test_boxes_are_scaled_with_images_that_were_made_smaller(small, tmp_path):
    for image in small.content["images"]:
        image["width"], image["height"] = 120, 80
    for entry in small.content["annotations"]:
        entry["bbox"], entry["area"] = [20, 20, 60, 40], 2400
        entry["segmentation"] = [[20, 20, 80, 20, 80, 60, 20, 60]]
    fixed, content = small.fix(tmp_path / "out")
    assert fixed.after.is_clean
    assert [(image["width"], image["height"]) for image in content["images"]] == [(60, 40), (60, 40)]
    assert content["annotations"][0]["bbox"] == [10, 10, 30, 20]
    assert content["annotations"][0]["segmentation"] == []
    assert fixed.losses == (Loss("train", "masks", 2, 2),)


def test_names_from_outside_are_not_copied_and_links_are(small, tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "secret.png")
    Image.new("RGB", (60, 40), "red").save(tmp_path / "stored.png")
    small.content["images"][0]["file_name"] = "../../secret.png"
    small.content["images"][1]["file_name"] = str(small.root / "train" / "2.png")
    (small.root / "train" / "link.png").symlink_to(tmp_path / "stored.png")
    small.content["images"].append({"id": 5, "file_name": "link.png", "width": 60, "height": 40})
    fixed, content = small.fix(tmp_path / "out")
    assert [image["file_name"] for image in content["images"]] == ["2.png", "link.png"]
    assert sorted(path.name for path in (tmp_path / "out" / "train").iterdir()) == ["2.png", "link.png"]
    assert not any(path.is_symlink() for path in (tmp_path / "out" / "train").iterdir())
    assert fixed.repaired == {"escaping_file_name": 1, "absolute_file_name": 1}


def test_a_set_without_readable_images_is_refused_rather_than_written(small, tmp_path):
    for path in (small.root / "train").iterdir():
        path.write_bytes(b"")
    (small.root / "train.json").write_text(json.dumps(small.content))
    checked = examine(small.root)
    assert checked.result.count("image_empty") == 2
    with pytest.raises(DataError, match="none of its images can be used"):
        fix_data(checked, tmp_path / "out")
    assert not (tmp_path / "out").exists()
