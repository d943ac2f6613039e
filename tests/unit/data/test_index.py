from __future__ import annotations

from pathlib import Path

import numpy as np

from detrkit.data.index import CocoIndex, missing_images
from detrkit.data.read import read_coco

from .factory import annotation, coco, image_entry, write


def three_images(folder: Path) -> CocoIndex:
    images = [image_entry(number, f"sub/ö {number}.png") for number in (5, 6, 7)]
    annotations = [annotation(1, 5), annotation(2, 7), annotation(3, 7, category_id=3)]
    return read_coco(write(folder, coco(images, annotations)), folder)[0]


def test_selected_images_keep_their_annotations(tmp_path: Path) -> None:
    index = three_images(tmp_path).select(np.array([2, 1]))
    assert index.image_ids.tolist() == [7, 6]
    assert [index.file_name(row) for row in range(2)] == ["sub/ö 7.png", "sub/ö 6.png"]
    assert index.annotation_ids[index.annotation_rows(0)].tolist() == [2, 3]
    assert index.offsets.tolist() == [0, 2, 2]
    assert len(index.select(np.array([], dtype=np.int64))) == 0


def test_missing_images_are_found(tmp_path: Path) -> None:
    index = three_images(tmp_path)
    assert missing_images(index, tmp_path).tolist() == []
    (tmp_path / "sub" / "ö 6.png").unlink()
    assert missing_images(index, tmp_path).tolist() == [1]
    assert missing_images(index, tmp_path / "elsewhere").tolist() == [0, 1, 2]
