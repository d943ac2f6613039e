"""COCO results from detections, and supervision's import."""

import json
import subprocess
import sys

import numpy as np
import pytest

from detrkit.classes import ClassMap
from detrkit.detectors.interop import to_supervision
from detrkit.detectors.results import to_coco, write_predictions
from detrkit.types import ImageDetections

CLASS_MAP = ClassMap(names=("cat", "dog"), category_ids=(17, 90))


def found(count=2, source="a.jpg"):
    boxes = np.array([[1, 2, 4, 8], [0.5, 0.5, 1.0, 1.5]], dtype=np.float32)[:count]
    image = ImageDetections(boxes, np.array([0.75, 0.5], np.float32)[:count], np.array([1, 0])[:count])
    return to_supervision(image, CLASS_MAP, source=source, size_hw=(10, 20))


def test_coco_results_have_category_ids_and_widths():
    assert to_coco(found(), image_id=7) == [
        {"image_id": 7, "category_id": 90, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.75},
        {"image_id": 7, "category_id": 17, "bbox": [0.5, 0.5, 0.5, 1.0], "score": 0.5},
    ]
    assert to_coco(found(0), image_id=7) == []


def test_predictions_of_many_images_are_one_list(tmp_path):
    path = tmp_path / "predictions.json"
    assert write_predictions(path, [(3, found()), (4, found(0)), (None, found(1))]) == 3
    entries = json.loads(path.read_text())
    assert [entry.get("image_id") for entry in entries] == [3, 3, None]
    assert write_predictions(path, []) == 0
    assert json.loads(path.read_text()) == []


@pytest.mark.slow
def test_import_gives_no_warning_without_opencv():
    command = [sys.executable, "-W", "error", "-c", "import detrkit.detectors.interop"]
    assert subprocess.run(command, check=False).returncode == 0
