from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.config import DataConfig
from detrkit.data.formats import Layout, find_split, find_splits
from detrkit.errors import DataError, UsageError
from tests.unit.data.factory import coco, image_entry, write


def place(root: Path, annotations: str, images: str, name: str = "1.png") -> None:
    """Put an annotation file and its one image where a layout has them."""
    written = write(root / images, coco([image_entry(1, name)], []))
    target = root / annotations
    target.parent.mkdir(parents=True, exist_ok=True)
    written.rename(target)


@pytest.mark.parametrize(
    ("data", "split", "annotations", "images"),
    [
        ("coco_mini", "train", "annotations/instances_train2017.json", "train2017"),
        ("coco_panoptic_yolo", "val", "annotations/instances_val2017_boxes.json", "images/val2017"),
        ("bccd_voc", "train", "Annotations", "JPEGImages"),
        ("bccd_voc", "trainval", "Annotations", "JPEGImages"),
        ("cones_yolo", "val", "data.yaml", "valid/images"),
        ("chess_roboflow_coco", "valid", "valid/_annotations.coco.json", "valid"),
        ("bad_inputs/07_coco_missing_file_and_empty", "train", "train/_annotations.coco.json", "train"),
        ("bad_inputs/06_coco_exif_rotated_string_boxes", "train", "_annotations.coco.json", "."),
    ],
)
def test_real_layouts_are_found(shared_data: Path, data: str, split: str, annotations: str, images: str) -> None:
    root = shared_data / data
    found = find_split(root, split)
    assert (found.annotations, found.images) == (root / annotations, root / images)
    assert (root / annotations).name in found.reason


@pytest.mark.parametrize(
    ("data", "layout", "split", "annotations", "images"),
    [
        ("bccd_voc", "coco", "test", "coco/instances_test.json", "JPEGImages"),
        ("cones_yolo", "coco", "val", "coco/instances_valid.json", "valid/images"),
        ("coco_panoptic_yolo", "yolo", "train", "data.yaml", "images/train2017"),
        ("coco_panoptic_yolo", "panoptic", "val", "annotations/panoptic_val2017.json", "images/val2017"),
    ],
)
def test_another_layout_can_be_asked_for(
    shared_data: Path, data: str, layout: Layout, split: str, annotations: str, images: str
) -> None:
    root = shared_data / data
    found = find_split(root, split, DataConfig(layout=layout))
    assert (found.annotations, found.images) == (root / annotations, root / images)
    assert find_splits(root, layout)[split] == found


def test_a_single_file_can_be_the_data_set(shared_data: Path) -> None:
    root = shared_data / "coco_panoptic_yolo"
    assert find_split(root / "data.yaml", "val").format == "yolo"
    assert list(find_splits(root / "annotations" / "instances_train2017.json")) == ["train"]
    found = find_splits(root / "annotations" / "panoptic_val2017.json")["val"]
    assert (found.format, found.listings) == ("panoptic", (root / "annotations" / "panoptic_val2017",))
    with pytest.raises(DataError, match="has no split 'val'; it has train"):
        find_split(root / "annotations" / "instances_train2017.json", "val")


def test_the_one_data_set_inside_a_folder_is_found_and_several_are_named(
    tmp_path: Path, shared_data: Path
) -> None:
    (tmp_path / "download").mkdir()
    eggs, kangaroos = (tmp_path / "download" / name for name in ("eggs", "kangaroos"))
    eggs.symlink_to(shared_data / "bad_inputs" / "12_yolo_data_yaml_wrong_paths")
    assert find_split(tmp_path, "train").images == eggs / "train" / "images"
    kangaroos.symlink_to(shared_data / "bad_inputs" / "02_voc_truncated_jpeg")
    with pytest.raises(DataError, match=r"sets: download/eggs \(YOLO\), download/kangaroos \(Pascal VOC\)"):
        find_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("annotations", "images", "name"),
    [
        ("train.json", "images", "1.png"),
        ("train.json", ".", "train/1.png"),
        ("annotations/instances_train.json", "images/train", "1.png"),
        ("annotations/instances_train2014.json", "train2014", "1.png"),
        ("train/annotations.coco/instances_train.json", "train/images", "1.png"),
        ("train/train.json", "train/images", "1.png"),
    ],
)
def test_common_layouts_are_found(tmp_path: Path, annotations: str, images: str, name: str) -> None:
    place(tmp_path, annotations, images, name)
    found = find_split(tmp_path, "train")
    assert found.annotations == tmp_path / annotations
    assert (found.images / name).is_file()


def test_config_paths_win(tmp_path: Path, shared_data: Path) -> None:
    root = shared_data / "bccd_voc"
    config = DataConfig(root=str(root), val_annotations="coco/instances_test.json")
    found = find_split(None, "val", config)
    assert found.annotations.name == "instances_test.json"
    assert found.images == root / "JPEGImages"
    assert found.layout == "explicit"
    place(tmp_path, "somewhere/boxes.json", "pictures")
    config = DataConfig(train_annotations="somewhere/boxes.json", train_images=str(tmp_path / "pictures"))
    found = find_split(tmp_path, "train", config)
    assert (found.annotations, found.images) == (tmp_path / "somewhere" / "boxes.json", tmp_path / "pictures")
    root, named = shared_data / "coco_panoptic_yolo", "annotations/panoptic_train2017.json"
    assert find_split(root, "train", DataConfig(train_annotations=named)).format == "panoptic"


@pytest.mark.parametrize(
    ("annotations", "images", "split"),
    [
        ("annotations.json", "images", "train"),
        ("labels.json", "data", "train"),
        ("annotations/instances_default.json", "images", "train"),
        ("my_test_boxes.json", "pictures", "test"),
        ("train2014/coco.json", "train2014", "train"),
    ],
)
def test_json_files_of_any_name_are_recognised_by_what_they_hold(
    tmp_path: Path, annotations: str, images: str, split: str
) -> None:
    place(tmp_path, annotations, images)
    (tmp_path / "package.json").write_text('{"images": {}, "annotations": 1}')
    found = find_splits(tmp_path)
    assert {name: (files.annotations, files.images) for name, files in found.items()} == {
        split: (tmp_path / annotations, tmp_path / images)
    }


def test_missing_validation_split_names_the_others(tmp_path: Path) -> None:
    place(tmp_path, "train/_annotations.coco.json", "train")
    with pytest.raises(DataError, match=r"no split 'val'.*data\.val_split=train, which measures on the training"):
        find_split(tmp_path, "val")
    place(tmp_path, "test/_annotations.coco.json", "test")
    with pytest.raises(DataError, match=r"it has test \(test/_annot.*, train \(train/.*data\.val_split=test"):
        find_split(tmp_path, "val")
    assert find_split(tmp_path, "test").images == tmp_path / "test"


def test_folders_without_annotations_say_what_is_there(tmp_path: Path, shared_data: Path) -> None:
    with pytest.raises(DataError, match="found exif_orientation, pillow"):
        find_split(shared_data / "bad_inputs" / "09_images_only", "train")
    with pytest.raises(DataError, match="found an empty folder"):
        find_split(tmp_path, "train")
    with pytest.raises(UsageError, match=r"no such folder; did you mean coco_mini\?"):
        find_split(shared_data / "coco_mni", "train")
    with pytest.raises(UsageError, match="is a file, expected the folder of a data set, a COCO JSON"):
        find_split(shared_data / "INDEX.md", "train")


def test_another_layout_is_advised_by_the_option_that_the_command_has(shared_data: Path) -> None:
    root = shared_data / "bccd_voc"
    assert "--layout coco" in find_splits(root)["train"].reason
    assert "--set data.layout=coco" in find_split(root, "train").reason


@pytest.mark.parametrize("inside", ["", "train", "train2017", "images/train"])
def test_images_that_lie_elsewhere_are_found_in_the_folder_that_is_named(tmp_path: Path, inside: str) -> None:
    place(tmp_path / "set", "annotations/instances_train2017.json", "../photos/" + inside)
    images = tmp_path / "photos" / inside
    with pytest.raises(DataError, match=r"--image-folder DIR \(in train: --set data.train_images=DIR"):
        find_splits(tmp_path / "set")
    assert find_splits(tmp_path / "set", image_folder=tmp_path / "photos")["train"].images == images
    config = DataConfig(train_images=str(tmp_path / "photos"))
    assert find_split(tmp_path / "set", "train", config).images == images
    single = tmp_path / "set" / "annotations" / "instances_train2017.json"
    assert find_splits(single, image_folder=tmp_path / "photos")["train"].images == images
