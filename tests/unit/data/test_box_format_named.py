"""A split whose boxes are written another way is refused by every reader, and read where that is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.config import DataConfig
from detrkit.data.split import read_split
from detrkit.errors import DataError

WIDTH, HEIGHT = 96, 80
BOXES = ([10, 20, 30, 30], [50, 10, 35, 20], [60, 40, 30, 36])
Box = list[float]


def write(folder: Path, written: Callable[[Box], Box]) -> None:
    """Write two images of three objects in COCO layout."""
    (folder / "train").mkdir(parents=True)
    images, annotations = [], []
    for number in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT), "gray").save(folder / "train" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT})
        for box in BOXES:
            key = {"id": len(annotations) + 1, "image_id": number, "category_id": 1}
            annotations.append({**key, "bbox": written([float(value) for value in box])})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("written", "word"),
    [
        (lambda b: [b[0] / WIDTH, b[1] / HEIGHT, b[2] / WIDTH, b[3] / HEIGHT], "normalised"),
        (lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]], "corners"),
    ],
)
def test_boxes_written_another_way_are_refused_by_name(
    tmp_path: Path, written: Callable[[Box], Box], word: str
) -> None:
    write(tmp_path, written)
    with pytest.raises(DataError, match=word) as caught:
        read_split(DataConfig(root=str(tmp_path)), "train")
    assert "data check" in str(caught.value)
    told = read_split(DataConfig(root=str(tmp_path), on_lost_objects="warn"), "train")
    assert any(word in line for line in told.lines())


def test_boxes_as_the_format_has_them_are_read_without_a_word(tmp_path: Path) -> None:
    write(tmp_path, list)
    split = read_split(DataConfig(root=str(tmp_path)), "train")
    assert split.report.is_sound
    assert np.allclose(split.index.boxes_xyxy[0], [10, 20, 40, 50])
