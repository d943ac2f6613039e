"""Annotated samples before and after augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.config import TransformConfig
from detrkit.curation.preview import class_id_of, draw_sample, preview_rows, write_preview
from detrkit.curation.synthetic import write_synthetic
from detrkit.data.coco import CocoDataset
from detrkit.data.formats import find_splits
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_split_files
from detrkit.errors import DataError, UsageError
from tests.unit.data.factory import make_index

CONFIG = TransformConfig(scales=(96,), eval_size=96, crop_scales=(80,), crop_range=(50, 80))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[CocoIndex, Path]:
    root = write_synthetic(tmp_path_factory.mktemp("data"), train_images=12, val_images=1, size=64)
    files = find_splits(root)["train"]
    return read_split_files(files)[0], files.images


def test_boxes_are_drawn_where_the_objects_are():
    """A white object on black, whose box is drawn around it in the tile."""
    index = make_index([[(0, (40, 20, 120, 60))]], [(100, 200)])
    image = np.zeros((100, 200, 3), np.uint8)
    image[20:60, 40:120] = 255
    dataset = CocoDataset(index, Path(), None)
    drawn = draw_sample(
        torch.from_numpy(image).permute(2, 0, 1), dataset.read_target(0, (100, 200)), index.class_map
    )
    assert drawn.shape == (320, 640, 3)
    assert (drawn[85:180, 140:370] == 255).all(), "the object lies inside its box"
    outside = np.concatenate([drawn[210:].ravel(), drawn[:, 400:].ravel()])
    assert not outside.any()
    assert drawn[64:192, 128].any(axis=-1).all(), "the left edge"


def test_a_class_chooses_images_that_hold_it(data):
    index, images = data
    name = index.class_map.names[2]
    holding = {
        index.file_name(row) for row in range(len(index)) if 2 in index.labels[index.annotation_rows(row)].tolist()
    }
    assert {row.name for row in preview_rows(index, images, CONFIG, count=99, class_name=name.upper())} == holding


def test_unknown_and_absent_classes_are_said():
    index = make_index([[(0, (0, 0, 9, 9))]])
    with pytest.raises(UsageError, match=r"no class is called 'catt'; did you mean cat\?"):
        class_id_of(index.class_map, "catt")
    with pytest.raises(DataError, match="no image of this split holds the class 'fox'"):
        next(preview_rows(index, Path(), CONFIG, class_name="fox"))


def test_pictures_and_a_page_are_written(data, tmp_path: Path):
    done: list[int] = []
    rows = preview_rows(*data, CONFIG, count=3)
    page, files = write_preview(tmp_path / "out", "shapes <b>", rows, "as asked", done.append)
    assert done == [1, 2, 3]
    assert [file.name[:3] for file in files] == ["01-", "02-", "03-"]
    with Image.open(files[0]) as image:
        assert image.format == "PNG"
    html = page.read_text(encoding="utf-8")
    assert html.count("<img ") == 3
    assert "shapes &lt;b&gt;" in html
