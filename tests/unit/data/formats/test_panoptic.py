from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.config import DataConfig
from detrkit.data.formats import find_split
from detrkit.data.read import read_split_files
from detrkit.errors import AnnotationError, DataError
from tests.unit.data.factory import write_noise

PANOPTIC = DataConfig(layout="panoptic")
CATEGORIES = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]


def data_set(root: Path, segments: list[dict[str, Any]], categories: list[dict[str, Any]] = CATEGORIES) -> Path:
    (root / "annotations" / "panoptic_train").mkdir(parents=True)
    (root / "train").mkdir()
    for number in (1, 2):
        write_noise(root / "train" / f"{number}.jpg", 40, 60)
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[5:10, 6:16] = (7, 1, 2)
    Image.fromarray(pixels).save(root / "annotations" / "panoptic_train" / "1.png")
    content = {
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 60} for n in (1, 2)],
        "categories": categories,
    }
    (root / "annotations" / "panoptic_train.json").write_text(json.dumps(content))
    return root


def segment(**fields: Any) -> dict[str, Any]:
    return {"id": 7, "category_id": 1, "iscrowd": 0, "bbox": [6, 5, 10, 5], "area": 50, **fields}


def test_real_things_are_read(shared_data: Path) -> None:
    root = shared_data / "coco_panoptic_yolo"
    for split, things, crowd in (("train", 407, 2), ("val", 343, 3)):
        files = find_split(root, split, PANOPTIC)
        index, report = read_split_files(files)
        assert report.is_sound
        assert (len(index), len(index.labels), index.iscrowd.sum()) == (48, things, crowd)
        assert len(index.class_map) == 80


def test_sample_of_panopticapi_is_the_only_split_of_its_folder(shared_data: Path) -> None:
    files = find_split(shared_data / "coco_panoptic_yolo" / "panopticapi_sample_data", "examples")
    assert (files.format, files.images.name) == ("panoptic", "input_images")
    assert len(read_split_files(files)[0]) == 2


def test_text_ids_and_boxes_of_pixels(tmp_path: Path) -> None:
    segments = [
        segment(id=131335, bbox=None, category_id="c_1"),
        segment(id=8, category_id="sky"),
        segment(id=9, category_id="1"),
    ]
    categories = [
        {"id": "c_1", "name": "cat"},
        {"id": "1", "name": "dog"},
        {"id": "sky", "name": "s", "isthing": 0},
    ]
    root = data_set(tmp_path, segments, categories)
    path = root / "annotations" / "panoptic_train.json"
    content = json.loads(path.read_text())
    content["images"][0]["id"], content["images"][1]["id"] = "1_1", "11"
    content["annotations"][0]["image_id"] = "1_1"
    path.write_bytes(json.dumps(content).encode("utf-16"))
    index, report = read_split_files(find_split(root, "train", PANOPTIC))
    assert [index.written_id(row) for row in range(len(index))] == ["1_1"]
    assert index.boxes_xyxy.tolist() == [[6, 5, 16, 10]] * 2
    assert [index.class_map.names[label] for label in index.labels] == ["cat", "dog"]
    kinds = ("ids_numbered", "box_from_mask", "text_not_utf8")
    assert [report.count(kind) for kind in kinds] == [5, 1, 1]


def test_stuff_unknown_categories_and_images_without_segments(tmp_path: Path) -> None:
    segments = [segment(), segment(id=8, category_id=9), segment(id=9, category_id=5), segment(id=10, bbox=None)]
    files = find_split(data_set(tmp_path, segments), "train")
    index, report = read_split_files(files)
    assert index.boxes_xyxy.tolist() == [[6, 5, 16, 10]]
    assert {finding.kind: finding.count for finding in report.findings} == {
        "image_without_label_file": 1,
        "unknown_category_id": 1,
        "box_missing": 1,
    }


def test_missing_png_files_and_damaged_entries_are_said(tmp_path: Path) -> None:
    root = data_set(tmp_path, [segment()])
    path = root / "annotations" / "panoptic_train.json"
    path.write_text(path.read_text().replace('"category_id"', '"category"'))
    with pytest.raises(AnnotationError, match="no usable 'category_id', expected COCO panoptic"):
        read_split_files(find_split(root, "train"))
    (root / "annotations" / "panoptic_train" / "1.png").unlink()
    (root / "annotations" / "panoptic_train").rmdir()
    with pytest.raises(DataError, match=r"the folder of its PNG files is missing; expected .*panoptic_train"):
        find_split(root, "train")


def test_without_things_there_is_nothing_to_detect(tmp_path: Path) -> None:
    root = data_set(tmp_path, [segment(category_id=9)], CATEGORIES[1:])
    with pytest.raises(DataError, match="no category is a thing"):
        read_split_files(find_split(root, "train"))
