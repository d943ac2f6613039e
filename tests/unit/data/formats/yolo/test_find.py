from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.data.formats import SplitFiles, find_split, find_splits
from detrkit.data.formats.yolo.data_yaml import read_data_yaml
from detrkit.data.read import read_split_files
from detrkit.errors import AnnotationError, DataError
from tests.unit.data.factory import write_noise

LINE = "0 0.5 0.5 0.2 0.4\n"


def place(root: Path, images: str, labels: str, text: str = LINE, name: str = "1") -> None:
    """Put one image and its labels where a layout has them."""
    (root / images).mkdir(parents=True, exist_ok=True)
    (root / labels).mkdir(parents=True, exist_ok=True)
    write_noise(root / images / f"{name}.png", 40, 60)
    (root / labels / f"{name}.txt").write_text(text)


def objects(files: SplitFiles) -> int:
    return len(read_split_files(files)[0].labels)


@pytest.mark.parametrize(
    ("written", "images", "labels"),
    [
        ("./images/train/", "images/train", "labels/train"),
        ("../train/images", "train/images", "train/labels"),
        ("some/where/else/train/images", "train/images", "train/labels"),
        ("/content/set-2/images/train", "images/train", "labels/train"),
        ("C:\\sets\\mine\\train\\images", "train/images", "train/labels"),
        ("../train/images", "training/images", "training/labels"),
        ("train", "train/images", "train/labels"),
    ],
)
def test_what_data_yaml_names_is_found_inside_the_data_set(
    tmp_path: Path, written: str, images: str, labels: str
) -> None:
    place(tmp_path, images, labels)
    (tmp_path / "data.yaml").write_text(f"train: '{written}'\nnames: [cat]\n")
    files = find_split(tmp_path, "train")
    assert files.format == "yolo"
    assert f"data.yaml names train: {written}" in files.reason
    exact = (tmp_path / written.rstrip("/")).is_dir() and ".." not in written
    assert ("which lies in" in files.reason) is not exact
    assert objects(files) == 1


def test_several_folders_and_a_base_path(tmp_path: Path) -> None:
    place(tmp_path, "set/a/images", "set/a/labels")
    place(tmp_path, "set/b/images", "set/b/labels", LINE * 2)
    (tmp_path / "data.yaml").write_text("path: set\ntrain: [a/images, b/images]\nnames: {0: cat}\n")
    files = find_split(tmp_path, "train")
    index, _ = read_split_files(files)
    assert [index.file_name(row) for row in (0, 1)] == ["set/a/images/1.png", "set/b/images/1.png"]
    assert len(index.labels) == 3


def test_lists_of_images(tmp_path: Path) -> None:
    place(tmp_path, "pictures/images", "pictures/labels", name="1")
    place(tmp_path, "pictures/images", "pictures/labels", name="2")
    (tmp_path / "train.txt").write_text("./pictures/images/2.png\n\n")
    (tmp_path / "val.txt").write_text("/gone/pictures/images/1.png\r\n/gone/pictures/images/3.png\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [cat]\n")
    found = find_splits(tmp_path)
    train, report = read_split_files(found["train"])
    assert [train.file_name(row) for row in range(len(train))] == ["pictures/images/2.png"]
    assert report.is_sound
    val, report = read_split_files(found["val"])
    assert [val.file_name(row) for row in range(len(val))] == ["pictures/images/1.png"]
    assert "1 listed image files do not exist (left out): gone/pictures/images/3.png" in str(report)


@pytest.mark.parametrize(
    ("images", "labels", "split"),
    [
        ("images", "labels", "train"),
        ("images/val2017", "labels/val2017", "val"),
        ("test", "test", "test"),
        (".", ".", "train"),
    ],
)
def test_folders_alone_are_enough(tmp_path: Path, images: str, labels: str, split: str) -> None:
    place(tmp_path, images, labels)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    found = find_splits(tmp_path)
    assert list(found) == [split]
    index, _ = read_split_files(found[split])
    assert (len(index.labels), index.class_map.names) == (1, ("cat", "dog"))
    assert "class names in classes.txt" in found[split].reason


def test_darknet_with_lists_and_names_in_a_folder(tmp_path: Path) -> None:
    place(tmp_path, "data/obj_train_data", "data/obj_train_data", "1 0.5 0.5 0.2 0.4\n")
    (tmp_path / "data" / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "data" / "train.txt").write_text("data/obj_train_data/1.png\n")
    index, _ = read_split_files(find_split(tmp_path, "train"))
    assert (index.labels.tolist(), index.class_map.names) == ([1], ("cat", "dog"))


def test_folders_outside_the_data_set_are_refused(tmp_path: Path) -> None:
    place(tmp_path, "secret", "secret")
    root = tmp_path / "set"
    root.mkdir()
    for written in ("../secret", str(tmp_path / "secret")):
        (root / "data.yaml").write_text(f"train: {written}\nnames: [cat]\n")
        with pytest.raises(DataError, match=r"train is .*, which is .*secret, outside the data set"):
            find_split(root, "train")


def test_listed_images_outside_the_data_set_are_refused(tmp_path: Path) -> None:
    place(tmp_path, "secret", "secret")
    root = tmp_path / "set"
    place(root, "images", "labels")
    (root / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")
    (root / "train.txt").write_text("images/1.png\n../secret/1.png\n")
    with pytest.raises(AnnotationError, match=r"line 2: '\.\./secret/1\.png' is .* outside the data set"):
        read_split_files(find_split(root, "train"))
    (root / "train.txt").write_text("images/1.png\n../nowhere/9.png\n")
    _, report = read_split_files(find_split(root, "train"))
    assert "1 listed image files do not exist (left out): nowhere/9.png" in str(report)


def test_a_split_without_images_is_no_split(tmp_path: Path) -> None:
    place(tmp_path, "train/images", "train/labels")
    (tmp_path / "test" / "images").mkdir(parents=True)
    (tmp_path / "data.yaml").write_text("train: train/images\ntest: test/images\nval: \nnames: [cat]\n")
    assert list(find_splits(tmp_path)) == ["train"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [no, 'on', 1, 1.0, ~]", {0: "no", 1: "on", 2: "1", 3: "1.0", 4: "~"}),
        ("names: {0: cat, 2: dog}", {0: "cat", 2: "dog"}),
        ("names:\n- Blood Stained Egg\n- Brown Egg", {0: "Blood Stained Egg", 1: "Brown Egg"}),
        ("nc: 3", None),
    ],
)
def test_class_names_are_text_as_written(tmp_path: Path, text: str, names: dict[int, str] | None) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(f"train: x\n{text}\n")
    assert read_data_yaml(path).names == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: {a: b}", "names is .*, expected class names, or number: name"),
        ("names: [[a], b]", "names is .*, expected class names"),
        ("- 1", "holds no keys, expected train, val and names"),
        ("train: {a: b}", "train is .*, expected folders or a .txt file"),
        ("a: [", "not valid YAML"),
    ],
)
def test_damaged_data_yaml_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=message):
        find_split(tmp_path, "train")


def test_aliases_of_yaml_are_not_multiplied(tmp_path: Path) -> None:
    levels = "".join(f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, 30))
    (tmp_path / "data.yaml").write_text(f"a0: &a0 [x]\n{levels}names: *a29\ntrain: images\n")
    with pytest.raises(AnnotationError, match="names is"):
        find_split(tmp_path, "train")
