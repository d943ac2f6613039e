"""Files of detections in COCO's result format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.data.split import Split
from detrkit.detectors.find import find_target
from detrkit.detectors.on_split import collect, detect_on_split
from detrkit.detectors.results import ResultsFile
from detrkit.errors import DataError, UsageError
from detrkit.evaluation.coco import METRIC_NAMES
from tests.unit.detectors.splits import entry, split_of, write_split
from tests.unit.detectors.tiny import pycocotools_numbers

SIZES = [(60, 80)] * 6


@pytest.fixture
def split(tmp_path: Path) -> Split:
    random = np.random.default_rng(1)
    boxes = random.uniform((0, 0, 5, 5), (50, 35, 25, 25), (24, 4)).round(2)
    annotations = [
        {"image_id": i % 6 + 1, "category_id": (1, 7)[i % 2], "bbox": box} for i, box in enumerate(boxes.tolist())
    ]
    write_split(tmp_path / "data", SIZES, annotations)
    return split_of(tmp_path / "data")


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "found.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def noisy_results(split: Split) -> list[dict[str, Any]]:
    """Detections near the objects, in no order, with ties of score and images without any."""
    random = np.random.default_rng(2)
    content = json.loads(Path(split.files.annotations).read_text(encoding="utf-8"))
    found = []
    for annotation in content["annotations"]:
        if annotation["image_id"] == 6:
            continue
        for _ in range(3):
            box = (np.array(annotation["bbox"]) * random.uniform(0.9, 1.1, 4)).tolist()
            found.append(
                entry(annotation["image_id"], annotation["category_id"], box, float(random.integers(1, 20)) / 20)
            )
    random.shuffle(found)
    return found


def test_the_twelve_numbers_equal_pycocotools_to_the_last_digit(tmp_path: Path, split: Split):
    path = written(tmp_path, noisy_results(split))
    metrics = collect(find_target(path), split).finish()
    assert metrics["AP"] > 0.1
    assert [metrics[name] for name in METRIC_NAMES] == pycocotools_numbers(Path(split.files.annotations), path)


def test_classes_are_those_of_the_split_it_is_bound_to(tmp_path: Path, split: Split):
    target = find_target(written(tmp_path, [entry(1, 7, [0, 0, 5, 5])]))
    assert isinstance(target, ResultsFile)
    assert target.stages is None
    assert len(target.class_map) == 0
    bound = target.bind(split)
    assert bound.class_map == split.index.class_map
    assert len(target.class_map) == 0  # itself it stays as it was
    image_id, found = next(iter(bound.detect(split)))
    assert (image_id, found.class_ids.tolist()) == (1, [split.index.class_map.names.index("dog")])


def test_a_change_of_the_images_cannot_be_asked_of_a_file(tmp_path: Path, split: Split):
    target = ResultsFile(written(tmp_path, []))
    with pytest.raises(UsageError, match="give a model"):
        next(iter(detect_on_split(target, split, change=lambda image, _id: image)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "not valid JSON, perhaps cut off"),
        ({"images": [], "annotations": []}, "one object with annotations, images"),
        ([1], "entry 0 is a int"),
        ([entry(1, 1, [0, 0, 1, 1]), {"image_id": 1}], "entry 1 has no category_id, bbox, score"),
        ([{**entry(1, 1, [0, 0, 1, 1]), "score": None}], "entry 0 has no score"),
        ([{**entry(1, 1, [0, 0, 1, 1]), "image_id": None}], "entry 0 has no image_id"),
        ([{**entry(1, 1, [0, 0, 1, 1]), "image_id": [1]}], "entry 0: .*got `array`"),
        ([entry(1, 1, [0, 0, 1])], r"entry 0 has bbox \[0, 0, 1\]"),
        ([{**entry(1, 1, [0, 0, 1, 1]), "score": "good"}], "score 'good'"),
        ([{"file_name": "a.jpg", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}], "'a.jpg'"),
        ([entry(1, 1, [0, 0, float("nan"), 1])], "entry 0 has a box or score that is NaN"),
        ([entry(1, 1, [0, 0, 1, 1], float("nan"))], "entry 0 has a box or score that is NaN"),
        ([entry(1, 1, [0, 0, 1, 1], float("inf"))], "NaN or infinite"),
        ([entry(1, 1, [0, 0, 1, 1]), entry(1, 1, [5, 5, 4, -3])], "detection 1 has width 4 and height -3"),
        ([entry(99, 1, [0, 0, 1, 1]), entry(98, 1, [0, 0, 1, 1])], "2 image ids are not in .*: 99, 98"),
        ([entry(1, 2, [0, 0, 1, 1])], "1 category id is not in .*: 2"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, split: Split, content: Any, message: str):
    with pytest.raises(DataError, match=message) as caught:
        find_target(written(tmp_path, content)).bind(split)
    assert "found.json" in str(caught.value)


def test_an_absent_file_is_asked_wrongly():
    with pytest.raises(UsageError, match=r"no file of detections at nowhere\.json"):
        find_target("nowhere.json")
