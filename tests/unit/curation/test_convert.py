"""Every real data set through every written format and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.curation.convert import convert_data
from detrkit.data.formats import Layout, find_splits
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_split_files
from detrkit.errors import AnnotationError, DataError

Objects = dict[str, tuple[bytes, list[str], np.ndarray]]
SETS: list[tuple[str, Layout]] = [
    ("coco_mini", "auto"),
    ("coco_panoptic_yolo", "auto"),
    ("coco_panoptic_yolo", "yolo"),
    ("coco_panoptic_yolo", "panoptic"),
    ("bccd_voc", "auto"),
    ("chess_roboflow_coco", "auto"),
    ("cones_yolo", "auto"),
    ("bad_inputs/03_voc_no_extension_zero_box", "auto"),
    ("bad_inputs/04_yolo_mixed_polygons_bad_classes", "auto"),
    ("bad_inputs/08_voc_png_named_jpg_rgba", "auto"),
]
WAYS: list[tuple[Any, bool, float]] = [
    ("coco", False, 1e-6),
    ("yolo", False, 1e-4),
    ("voc", False, 0.5),
    ("voc", True, 1e-3),
]


def read(data: Path, layout: Layout = "auto") -> dict[str, tuple[CocoIndex, Objects]]:
    """Index of each split, and of each image its bytes, and the class names and boxes of what is no crowd."""
    splits = {}
    for split, files in find_splits(data, layout).items():
        index, _ = read_split_files(files)
        objects: Objects = {}
        for row in range(len(index)):
            rows = index.annotation_rows(row)
            kept = ~index.iscrowd[rows]
            names = [index.class_map.names[label] for label in index.labels[rows][kept]]
            content = (files.images / index.file_name(row)).read_bytes()
            objects[index.file_name(row)] = (content, names, index.boxes_xyxy[rows][kept])
        splits[split] = (index, objects)
    return splits


@pytest.mark.parametrize(("data", "layout"), SETS)
def test_there_and_back(shared_data: Path, tmp_path: Path, data: str, layout: Layout) -> None:
    source = read(shared_data / data, layout)
    for to, decimals, tolerance in WAYS:
        out = tmp_path / f"{to}{decimals}"
        result = convert_data(shared_data / data, out, to, layout=layout, decimals=decimals)
        back = read(out)
        assert list(back) == list(source) == list(result.splits)
        for split, (index, objects) in source.items():
            other, found = back[split]
            assert found.keys() == objects.keys()
            assert other.class_map.names == index.class_map.names
            assert to == "yolo" or other.iscrowd.sum() == index.iscrowd.sum()
            assert other.sizes_hw.shape == index.sizes_hw.shape
            for name, (content, names, boxes) in objects.items():
                assert found[name][0] == content
                assert found[name][1] == names
                np.testing.assert_allclose(found[name][2], boxes, rtol=0, atol=tolerance)


def test_coco_to_coco_keeps_ids_masks_and_areas(shared_data: Path, tmp_path: Path) -> None:
    convert_data(shared_data / "coco_mini", tmp_path / "out", "coco")
    for split in ("train", "val"):
        old = json.loads((shared_data / f"coco_mini/annotations/instances_{split}2017.json").read_text())
        new = json.loads((tmp_path / f"out/annotations/instances_{split}.json").read_text())
        for entries in (old, new):
            entries["annotations"].sort(key=lambda entry: entry["id"])
        assert new == old


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("01_json_truncated", AnnotationError, "the file stops after byte 1769472"),
        ("09_images_only", DataError, "no data set found; looked for COCO JSON"),
        ("10_coco_unknown_category_ids", DataError, "none of its 13 annotations can be used"),
    ],
)
def test_what_cannot_be_read_is_not_converted(
    shared_data: Path, tmp_path: Path, data: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        convert_data(shared_data / "bad_inputs" / data, tmp_path / "out", "voc")
    assert not (tmp_path / "out").exists()
