from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.config import DataConfig
from detrkit.data.faults import ReadReport
from detrkit.data.formats import find_split
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_split_files
from detrkit.errors import AnnotationError, DataError
from tests.unit.data.factory import write_noise

HEIGHT, WIDTH = 40, 60


def data_set(root: Path, *texts: str | None, yaml: str = "names: [cat, dog]") -> Path:
    """A training split with one image per text of labels; None is an image without a label file."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number, text in enumerate(texts, start=1):
        write_noise(root / "images" / f"{number}.png", HEIGHT, WIDTH)
        if text is not None:
            (root / "labels" / f"{number}.txt").write_text(text)
    (root / "data.yaml").write_text(f"train: images\n{yaml}\n")
    return root


def read(root: Path) -> tuple[CocoIndex, ReadReport]:
    return read_split_files(find_split(root, "train"))


@pytest.mark.parametrize(
    ("data", "layout", "splits"),
    [
        ("coco_panoptic_yolo", "coco", {"train": 406, "val": 340}),
        ("cones_yolo", "coco", {"train": 285, "val": 97, "test": 85}),
    ],
)
def test_real_labels_are_the_boxes_of_the_coco_file(
    shared_data: Path, data: str, layout: str, splits: dict[str, int]
) -> None:
    for split, count in splits.items():
        root = shared_data / data
        yolo, report = read_split_files(find_split(root, split, DataConfig(layout="yolo")))
        coco, _ = read_split_files(find_split(root, split, DataConfig(layout=layout)))  # type: ignore[arg-type]
        assert report.is_sound
        assert yolo.class_map.names == coco.class_map.names
        row_of = {coco.file_name(row).rpartition("/")[2]: row for row in range(len(coco))}
        assert len(yolo) == len(coco)
        assert len(yolo.labels) == count
        for row in range(len(yolo)):
            mine, theirs = yolo.annotation_rows(row), coco.annotation_rows(row_of[yolo.file_name(row)])
            real = ~coco.iscrowd[theirs]
            order = np.lexsort(np.round(yolo.boxes_xyxy[mine], 2).T)
            other = np.lexsort(np.round(coco.boxes_xyxy[theirs][real], 2).T)
            assert yolo.labels[mine][order].tolist() == coco.labels[theirs][real][other].tolist()
            pairs = yolo.boxes_xyxy[mine][order], coco.boxes_xyxy[theirs][real][other]
            np.testing.assert_allclose(*pairs, atol=1e-3)


def test_lines_of_every_kind(tmp_path: Path) -> None:
    lines = [
        "0 0.5 0.5 0.2 0.4",
        "",
        "1.0 0.25 0.25 0.1 0.1 0.9",  # a confidence
        "1 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5",  # a polygon, or a turned box
        "0 0.5 0.5 0.2",
        "cat 0.5 0.5 0.2 0.4",
        "0.5 0.5 0.5 0.2 0.4",
        "0 0.5 0.5 0.2 0.4 1 2 3",
        "nan 0.5 0.5 0.2 0.4",
        "7 0.5 0.5 0.2 0.4",
        "-1 0.5 0.5 0.2 0.4",
        "0 nan 0.5 0.2 0.4",
        "0 0.5 0.5 0 0.4",
        "0 0.95 0.5 0.2 0.4",
        "0 inf 0.5 0.2 0.4 0.1 0.2",
    ]
    index, report = read(data_set(tmp_path, "\n".join(lines)))
    np.testing.assert_allclose(
        index.boxes_xyxy, [[24, 12, 36, 28], [12, 8, 18, 12], [6, 4, 24, 20], [51, 12, 60, 28]]
    )
    assert index.labels.tolist() == [0, 1, 1, 0]
    assert {finding.kind: finding.count for finding in report.findings} == {
        "extra_numbers": 1,
        "polygons_in_labels": 2,
        "label_line_unreadable": 4,
        "label_line_unclear": 1,
        "unknown_category_id": 2,
        "box_not_finite": 2,
        "box_empty": 1,
        "box_leaves_image": 1,
    }
    assert "labels/1.txt line 5: '0 0.5 0.5 0.2'" in str(report)
    assert "labels/1.txt line 14: corners 51, 12, 63, 28 in 60 x 40 pixels" in str(report)


def test_images_without_labels_have_no_objects(tmp_path: Path) -> None:
    index, report = read(data_set(tmp_path, "0 0.5 0.5 0.2 0.4", "", None))
    assert np.diff(index.offsets).tolist() == [1, 0, 0]
    assert report.is_sound
    _, report = read(data_set(tmp_path / "none", None, None))
    assert report.count("split_without_label_files") == 2


def test_boxes_are_scaled_by_the_upright_image(tmp_path: Path) -> None:
    root = data_set(tmp_path, "0 0.5 0.5 0.2 0.4")
    (root / "images" / "1.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / "1.jpg", exif=exif)
    index, _ = read(root)
    assert index.sizes_hw.tolist() == [[WIDTH, HEIGHT]]
    np.testing.assert_allclose(index.boxes_xyxy, [[16, 18, 24, 42]])


def test_gaps_and_wrong_counts_of_classes(tmp_path: Path) -> None:
    index, report = read(data_set(tmp_path, "5 0.5 0.5 0.2 0.4", yaml="nc: 3\nnames: {0: cat, 5: dog}"))
    assert (index.class_map.names, index.class_map.category_ids) == (("cat", "dog"), (0, 5))
    assert index.labels.tolist() == [1]
    assert "nc is 3, names has 2" in str(report)
    index, _ = read(data_set(tmp_path / "b", "1 0.5 0.5 0.2 0.4", yaml="nc: 3"))
    assert index.class_map.names == ("class_0", "class_1", "class_2")


def test_labels_without_image_are_counted(tmp_path: Path) -> None:
    root = data_set(tmp_path, "0 0.5 0.5 0.2 0.4")
    (root / "labels" / "9.txt").write_text("0 0.5 0.5 0.2 0.4")
    (root / "labels" / "classes.txt").write_text("cat")
    _, report = read(root)
    assert "1 label files without an image (left out): labels/9.txt" in str(report)


def test_without_objects_or_names_there_are_no_classes(tmp_path: Path) -> None:
    root = data_set(tmp_path, "", "")
    (root / "data.yaml").unlink()
    with pytest.raises(DataError, match="no label file holds an object"):
        read(root)


def test_keypoints_are_left_out_where_data_yaml_announces_them(tmp_path: Path) -> None:
    text = "0 0.5 0.5 0.2 0.4 0.1 0.1 2 0.2 0.2 2\n"
    index, report = read(data_set(tmp_path, text, yaml="names: [cat]\nkpt_shape: [2, 3]"))
    np.testing.assert_allclose(index.boxes_xyxy, [[24, 12, 36, 28]])
    assert report.count("extra_numbers") == 1


BOTH = "0 0.5 0.5 0.2 0.4\n1 0.25 0.25 0.1 0.1\n"
PLACES = [[24, 12, 36, 28], [12, 8, 18, 12]]


def with_split(root: Path, split: str, text: str, classes: str = "") -> None:
    """An image and its labels in ``images/SPLIT`` and ``labels/SPLIT``, with its list of classes."""
    for folder in ("images", "labels"):
        (root / folder / split).mkdir(parents=True, exist_ok=True)
    write_noise(root / "images" / split / f"{split}.png", HEIGHT, WIDTH)
    (root / "labels" / split / f"{split}.txt").write_text(text)
    if classes:
        (root / "labels" / split / "classes.txt").write_text(classes)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (BOTH.replace(".", ","), {"label_line_with_commas": 2}),
        (BOTH.replace(" ", ";"), {"label_line_with_commas": 2}),
        (BOTH.replace("\n", " 0.87 12\n"), {"extra_numbers": 2}),
        ("0 0.5 0.5 0.2 0.4 0.5 0.4 2 0.6 0.6 1\n1 0.25 0.25 0.1 0.1 0.25 0.22 2 0 0 0\n", {"extra_numbers": 2}),
        (BOTH.replace("0 0.5", "0.0 0.5"), {}),
    ],
)
def test_the_boxes_are_those_of_the_file(tmp_path: Path, text: str, found: dict[str, int]) -> None:
    index, report = read(data_set(tmp_path, text))
    np.testing.assert_allclose(index.boxes_xyxy, PLACES)
    assert index.labels.tolist() == [0, 1]
    assert {finding.kind: finding.count for finding in report.findings} == found


def test_a_line_that_is_unclear_in_its_split_is_told_by_the_others(tmp_path: Path) -> None:
    root = data_set(tmp_path, "0 0.5 0.5 0.2 0.4 0.45 0.6\n")
    with pytest.raises(AnnotationError, match=r"1 of 1 lines .* 6 numbers .* kpt_shape"):
        read(root)
    (root / "labels" / "val").mkdir()
    lines = [f"0 0.{at} 0.8 0.2 0.1 0.{at}1 0.82\n" for at in range(2, 9)]
    (root / "labels" / "val" / "9.txt").write_text("".join(lines))
    index, _ = read(root)
    np.testing.assert_allclose(index.boxes_xyxy, PLACES[:1])


@pytest.mark.parametrize("names", ["names: [box, ball]", "nc: 2"])
def test_classes_counted_from_1_are_one_loud_decision_for_all_splits(tmp_path: Path, names: str) -> None:
    with_split(tmp_path, "train", "1 0.5 0.5 0.2 0.4\n2 0.25 0.25 0.1 0.1\n")
    with_split(tmp_path, "val", "1 0.5 0.5 0.2 0.4\n")
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: images/val\n{names}\n")
    for split, labels in (("train", [0, 1]), ("val", [0])):
        index, report = read_split_files(find_split(tmp_path, split))
        assert index.labels.tolist() == labels
        assert report.count("class_ids_from_1") == len(labels)
    with_split(tmp_path, "val", "0 0.5 0.5 0.2 0.4\n")
    index, report = read_split_files(find_split(tmp_path, "train"))
    assert (index.labels.tolist(), report.count("class_ids_from_1")) == ([1], 0)
    assert report.count("unknown_category_id") == 1


def test_each_split_has_the_order_of_its_own_class_list(tmp_path: Path) -> None:
    with_split(tmp_path, "train", BOTH, "box\nball\n")
    with_split(tmp_path, "val", BOTH, "ball\nbox\ncone\n")
    with_split(tmp_path, "test", BOTH)
    for split, names in (("train", ["box", "ball"]), ("val", ["ball", "box"]), ("test", ["box", "ball"])):
        index, report = read_split_files(find_split(tmp_path, split))
        assert index.class_map.names == ("box", "ball", "cone")
        assert [index.class_map.names[label] for label in index.labels] == names
        assert report.count("class_order_differs") == (split == "val")


def test_what_lies_beside_the_labels_is_told(tmp_path: Path) -> None:
    root = data_set(tmp_path, BOTH, None, None)
    write_noise(root / "images" / "1.bmp", HEIGHT, WIDTH)
    (root / "labels" / "1.txt").rename(root / "labels" / "1.TXT")
    (root / "labels" / "9.txt").write_text(BOTH)
    (root / "labels" / "day1").mkdir()
    (root / "labels" / "day1" / "8.txt").write_text(BOTH)
    for name in "abc":
        (root / "labels" / f"{name}.json").touch()
    index, report = read(root)
    assert np.diff(index.offsets).tolist() == [2, 2, 0, 0]
    assert {finding.kind: (finding.count, finding.objects) for finding in report.findings} == {
        "label_file_shared": (1, 0),
        "label_files_of_other_kind": (3, 0),
        "label_file_without_image": (2, 4),
    }


@pytest.mark.parametrize("line", ["train.png", "train", "images/train/TRAIN.PNG", "images/train/train.jpg"])
def test_labels_are_those_of_the_image_that_a_list_means(tmp_path: Path, line: str) -> None:
    with_split(tmp_path, "train", BOTH)
    (tmp_path / "train.txt").write_text(f"{line}\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [box, ball]\n")
    index, report = read_split_files(find_split(tmp_path, "train"))
    np.testing.assert_allclose(index.boxes_xyxy, PLACES)
    assert report.ledger.objects_left_out == {}


@pytest.mark.parametrize(("encoding", "found"), [("utf-8-sig", 0), ("utf-16", 1), ("gbk", 1)])
def test_class_names_in_other_encodings(tmp_path: Path, encoding: str, found: int) -> None:
    root = data_set(tmp_path, BOTH.replace("\n", "\r\n"), yaml="")
    (root / "classes.txt").write_bytes("纸箱\n球\n".encode(encoding))
    (root / "labels" / "1.txt").write_text(BOTH, encoding="utf-16" if encoding == "utf-16" else "utf-8")
    index, report = read(root)
    assert index.class_map.names == ("纸箱", "球")
    assert (len(index.labels), report.count("text_not_utf8")) == (2, found)


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set", BOTH)
    for folder, name, text in (("images", "2.png", None), ("labels", "2.txt", BOTH)):
        store = tmp_path / "store" / folder
        store.mkdir(parents=True)
        write_noise(store / name, HEIGHT, WIDTH) if text is None else (store / name).write_text(text)
        (root / folder / "day1").symlink_to(store)
        (store / "back").symlink_to(store)
        (root / folder / "loop").symlink_to(root)
    index, report = read(root)
    assert [index.file_name(row) for row in range(len(index))] == ["1.png", "day1/2.png"]
    assert (len(index.labels), report.is_sound) == (4, True)
