"""What the writers do with data that a round trip of good sets does not show."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from detrkit.data.formats import find_splits
from detrkit.data.formats.coco.write import write_coco
from detrkit.data.formats.output import WriteOptions
from detrkit.data.formats.voc.write import whole_pixels, write_voc
from detrkit.data.formats.yolo.write import write_yolo
from detrkit.data.index import CocoIndex, pack_names
from detrkit.data.read import read_coco, read_split_files
from detrkit.errors import DataError, UsageError
from tests.unit.data.factory import annotation, coco, image_entry, write

Part = tuple[CocoIndex, Path]
NAMES = ["cat: 'x'", "no", "007", "<script>&amp;", "Großer Bär", " blank", "line\nbreak", "\x01", ""]
WRITERS: list[Callable[..., Any]] = [write_coco, write_yolo, write_voc]


def part(root: Path, images: list[Any], annotations: list[Any], **kinds: Any) -> Part:
    path = write(root, coco(images, annotations, **kinds))
    return read_coco(path, path.parent)[0], path.parent


def small(root: Path) -> Part:
    images = [image_entry(1), image_entry(2, "deep/er/2.png"), image_entry(3)]
    boxes = [annotation(1), annotation(2, 2, category_id=3), annotation(3, bbox=[0, 0, 60, 40], iscrowd=1)]
    return part(root, images, boxes)


@pytest.mark.parametrize("writer", WRITERS)
def test_nested_names_and_empty_images_come_back(writer: Callable[..., Any], tmp_path: Path) -> None:
    index, images = small(tmp_path / "a")
    (tmp_path / "out").mkdir()  # an empty folder is filled
    writer(tmp_path / "out", {"train": (index, images), "val": (index.select(np.array([1])), images)})
    found = find_splits(tmp_path / "out")
    assert list(found) == ["train", "val"]
    back, _ = read_split_files(found["train"])
    names = [back.file_name(row) for row in range(3)]
    prefix = "train/" if writer is write_voc else ""  # both splits have the same image
    assert sorted(names) == sorted(prefix + index.file_name(row) for row in range(3))
    assert back.class_map.names == index.class_map.names
    for row, name in enumerate(names):
        old = images / name.removeprefix(prefix)
        assert (found["train"].images / name).read_bytes() == old.read_bytes()
        assert (found["train"].images / name).samefile(old)
        assert np.diff(back.offsets)[row] == {"1.png": 2 - (writer is write_yolo), "deep/er/2.png": 1}.get(
            name.removeprefix(prefix), 0
        )


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_in_the_way_is_left_alone(writer: Callable[..., Any], tmp_path: Path) -> None:
    parts = {"train": small(tmp_path / "a")}
    with pytest.raises(UsageError, match="is not empty; give a new folder"):
        writer(tmp_path, parts)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        writer(tmp_path / "file", parts)
    with pytest.raises(UsageError, match="cannot be the name of a split"):
        writer(tmp_path / "out", {"../train": parts["train"]})
    with pytest.raises(UsageError, match="no split to write"):
        writer(tmp_path / "out", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_failure_leaves_nothing(
    writer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, images = small(tmp_path / "a")

    def full_disk(*_arguments: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detrkit.data.formats.output.shutil.copyfile", full_disk)
    with pytest.raises(OSError, match="No space left"):
        writer(tmp_path / "out", {"train": (index, images)}, WriteOptions(copy=True))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_file_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    index, images = small(tmp_path / "a")
    names = [f"../a/{index.file_name(row)}" for row in range(len(index))]
    index = dataclasses.replace(index, **dict(zip(("name_bytes", "name_offsets"), pack_names(names), strict=True)))
    with pytest.raises(DataError, match=r"outside the image folder|leads out of its folder"):
        write_yolo(tmp_path / "out", {"train": (index, images)})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("writer", WRITERS)
def test_class_names_of_every_kind(writer: Callable[..., Any], tmp_path: Path) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    boxes = [annotation(number, category_id=number) for number in range(len(NAMES))]
    index, images = part(tmp_path / "a", [image_entry()], boxes, categories=categories)
    writer(tmp_path / "out", {"train": (index, images)})
    back, report = read_split_files(find_splits(tmp_path / "out")["train"])
    expected = (
        NAMES if writer is not write_voc else [*map(str.strip, NAMES[:6]), "line break", "\ufffd", "class_8"]
    )
    assert list(back.class_map.names) == expected
    assert back.labels.tolist() == list(range(len(NAMES)))
    assert report.is_sound


@pytest.mark.parametrize("writer", [write_yolo, write_voc])
def test_images_that_differ_in_their_suffix_only(writer: Callable[..., list[str]], tmp_path: Path) -> None:
    images = [image_entry(1, "1.png"), image_entry(2, "1.jpg"), image_entry(3, "3")]
    (tmp_path / "a").mkdir()
    path = write(tmp_path / "a", coco(images[:2], [annotation(1), annotation(2, 2)]))
    (tmp_path / "a" / "3").write_bytes((tmp_path / "a" / "1.png").read_bytes())
    path.write_text(json.dumps(coco(images, [annotation(1), annotation(2, 2), annotation(3, 3)])))
    index, _ = read_coco(path, path.parent)
    written = writer(tmp_path / "out", {"train": (index, path.parent)})
    back, _ = read_split_files(find_splits(tmp_path / "out")["train"])
    assert sorted(back.file_name(row) for row in range(3)) == ["1.png", "1_jpg.jpg", "3.png"]
    assert np.diff(back.offsets).tolist() == [1, 1, 1]
    assert "2 images have a new name, such as 1_jpg.jpg for 1.jpg" in written[0]


def test_splits_with_different_class_lists_share_one(tmp_path: Path) -> None:
    other = [{"id": 1, "name": "dog"}, {"id": 2, "name": "owl"}]
    train = part(tmp_path / "a", [image_entry()], [annotation()])
    val = part(tmp_path / "b", [image_entry(1, "b.png")], [annotation(category_id=2)], categories=other)
    write_yolo(tmp_path / "out", {"train": train, "val": val})
    content = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert content["names"] == {0: "dog", 1: "cat", 2: "owl"}
    index, _ = read_split_files(find_splits(tmp_path / "out")["val"])
    assert [index.class_map.names[label] for label in index.labels] == ["owl"]


def test_yolo_leaves_crowd_out_and_says_so(tmp_path: Path) -> None:
    written = write_yolo(tmp_path / "out", {"train": small(tmp_path / "a")})
    assert written == ["train: 1 crowd regions left out: YOLO has none"]
    text = (tmp_path / "out" / "labels" / "train" / "1.txt").read_text()
    assert text == "1 0.250000000 0.275000000 0.333333333 0.250000000\n"
    assert (tmp_path / "out" / "labels" / "train" / "3.txt").read_text() == ""


def test_voc_has_whole_pixels_and_crowd_as_difficult(tmp_path: Path) -> None:
    boxes = [annotation(1, bbox=[5.4, 6.5, 20.2, 10.2]), annotation(2, bbox=[1, 1, 9, 9], iscrowd=1)]
    parts = {"train": part(tmp_path / "a", [image_entry()], boxes)}
    written = write_voc(tmp_path / "out", parts)
    root = ElementTree.parse(tmp_path / "out" / "Annotations" / "1.xml").getroot()
    texts = [[box.findtext(tag) for tag in ("xmin", "ymin", "xmax", "ymax")] for box in root.iter("bndbox")]
    assert texts == [["5", "6", "26", "17"], ["1", "1", "10", "10"]]
    assert [item.text for item in root.iter("difficult")] == ["0", "1"]
    assert written == ["train: 1 crowd regions written as difficult objects"]
    write_voc(tmp_path / "exact", parts, WriteOptions(decimals=True))
    back, _ = read_split_files(find_splits(tmp_path / "exact")["train"])
    np.testing.assert_allclose(back.boxes_xyxy[0], [5.4, 6.5, 25.6, 16.7])
    assert back.iscrowd.tolist() == [False, True]


def test_coco_keeps_everything_of_its_source(tmp_path: Path) -> None:
    images = [{**image_entry(17), "license": 3}, image_entry(18, "gone.png")]
    boxes = [
        annotation(5, 17, segmentation=[[1, 2, 3, 4, 5, 6]], bbox=[5.123456789, 6, 20, 10], score=1),
        annotation(5, 17, note="same id", bbox=[50, 6, 20, 10]),
        annotation(7, 17, bbox=[1, 1, "8", 8]),
        annotation(8, 18),
        annotation(9, 17, bbox=[1, 1, 0, 8]),
    ]
    categories = [{"id": 7, "name": "cat", "supercategory": "pet"}, {"id": 90, "name": "dog"}]
    content = {**coco(images, boxes, categories), "licenses": [{"id": 3}], "info": {"year": "2021"}}
    path = write(tmp_path / "a", content)
    (path.parent / "gone.png").unlink()
    index, _ = read_coco(path, path.parent)
    write_coco(tmp_path / "out", {"train": (index, path.parent)}, WriteOptions(sources={"train": path}))
    written = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert (written["licenses"], written["info"]) == ([{"id": 3}], {"year": "2021"})
    assert written["categories"] == categories
    assert written["images"] == [images[0]]
    first, second, third = written["annotations"]
    assert first == {**boxes[0], "area": 200.0}
    assert (second["id"], second["note"], second["bbox"]) == (8, "same id", [50, 6, 10, 10])  # clipped, own id
    assert third["bbox"] == [1, 1, 8, 8]


def test_whole_pixels_never_lose_a_box(tmp_path: Path) -> None:
    thin = [[0, 0, 0.3, 0.3], [59.8, 39.9, 0.2, 0.1], [10.4, 3, 0.2, 30], [10.6, 3, 0.8, 30]]
    boxes = [annotation(number, bbox=box) for number, box in enumerate(thin)]
    index, images = part(tmp_path / "a", [image_entry()], boxes)
    corners = whole_pixels(index)
    assert (corners[:, 2:] > corners[:, :2]).all()
    assert np.abs(corners - index.boxes_xyxy).max() <= 0.5
    assert corners[3].tolist() == [10.6, 3, 11.4, 33]  # whole where that leaves something
    written = write_voc(tmp_path / "out", {"train": (index, images)})
    assert "3 boxes too thin for whole pixels" in written[0]
    back = read_split_files(find_splits(tmp_path / "out")["train"])[0]
    assert np.abs(back.boxes_xyxy - index.boxes_xyxy).max() <= 0.5
