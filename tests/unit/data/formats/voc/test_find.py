from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.data.formats import find_split, find_splits
from detrkit.data.read import read_split_files
from tests.unit.data.factory import voc_xml, write_noise


def place(root: Path, annotations: str, images: str, name: str = "1", cls: str = "cat") -> None:
    """Put one image and its XML file where a layout has them."""
    for folder in (annotations, images):
        (root / folder).mkdir(parents=True, exist_ok=True)
    write_noise(root / images / f"{name}.png", 40, 60)
    (root / annotations / f"{name}.xml").write_text(voc_xml(f"{name}.png", [(cls, 1, 2, 30, 20)]))


@pytest.mark.parametrize(
    ("annotations", "images", "split"),
    [
        ("Annotations", "JPEGImages", "train"),
        ("annotations", ".", "train"),
        ("Annotations/val", "JPEGImages/val", "val"),
        ("Annotations/val", "JPEGImages", "val"),
        ("test/annotations", "test/images", "test"),
        (".", ".", "train"),
        ("VOCdevkit/VOC2007/Annotations", "VOCdevkit/VOC2007/JPEGImages", "train"),
    ],
)
def test_common_layouts_are_found(tmp_path: Path, annotations: str, images: str, split: str) -> None:
    place(tmp_path, annotations, images)
    found = find_splits(tmp_path)
    assert list(found) == [split]
    assert (found[split].format, found[split].layout) == ("voc", "Pascal VOC")
    index, report = read_split_files(found[split])
    assert (index.file_name(0), len(index.labels)) == ("1.png", 1)
    assert report.is_sound


def test_lists_decide_and_lists_of_classes_do_not(tmp_path: Path) -> None:
    for name, cls in (("1", "cat"), ("2", "dog"), ("3", "ant")):
        place(tmp_path, "Annotations", "JPEGImages", name, cls)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("1\n3\n9\n")
    (lists / "val.txt").write_text("2.png\n")
    (lists / "trainval.txt").write_text("1\n2\n3\n")
    (lists / "cat_train.txt").write_text("1  1\n3 -1\n")
    found = find_splits(tmp_path)
    assert list(found) == ["train", "val"]
    assert (
        found["val"].reason == "XML files in Annotations, images in JPEGImages, listed by ImageSets/Main/val.txt"
    )
    train, report = read_split_files(found["train"])
    val, _ = read_split_files(found["val"])
    assert [train.file_name(row) for row in range(len(train))] == ["1.png", "3.png"]
    assert "1 images without an annotation file (left out): 9: no 9.xml" in str(report)
    assert [val.file_name(row) for row in range(len(val))] == ["2.png"]
    assert train.class_map.names == val.class_map.names == ("ant", "cat", "dog")
    assert len(read_split_files(find_split(tmp_path, "trainval"))[0]) == 3
