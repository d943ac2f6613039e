"""Data sets as their archives hold them, made small here, into layouts that detrkit reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from detrkit.curation.fetch import arrange
from detrkit.curation.fetch.coco_names import COCO_NAMES
from detrkit.data.formats import find_split, find_splits
from detrkit.data.read import read_split_files
from detrkit.errors import DataError

VOC_XML = """<annotation><filename>{name}.jpg</filename><size><width>20</width><height>10</height></size>
<object><name>thing</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>
</annotation>"""

# As the published files are written, down to the quotes and the blank lines.
FUDAN_HEAD = """# Compatible with PASCAL Annotation Version 1.00
Image filename : "PennFudanPed/PNGImages/{name}.png"
Image size (X x Y x C) : 40 x 30 x 3
Database : "The Penn-Fudan-Pedestrian Database"
Objects with ground truth : {count} {{ "PASpersonWalking" }}
# Note there may be some objects not included in the ground truth list for they are severe-occluded
# or have very small size.
# Top left pixel co-ordinates : (1, 1)
"""
FUDAN_OBJECT = """# Details for pedestrian {number} ("PASpersonWalking")
Original label for object {number} "PASpersonWalking" : "PennFudanPed"
Bounding box for object {number} "PASpersonWalking" (Xmin, Ymin) - (Xmax, Ymax) : ({x1}, {y1}) - ({x2}, {y2})
Pixel mask for object {number} "PASpersonWalking" : "PennFudanPed/PedMasks/{name}_mask.png"

"""


def image(path: Path, size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def voc(folder: Path, name: str, images: str, xmls: str) -> None:
    image(folder / images / f"{name}.jpg")
    text(folder / xmls / f"{name}.xml", VOC_XML.format(name=name))


def stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir())


def lines(path: Path) -> list[str]:
    return path.read_text().split()


def top(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_bccd_is_lifted_to_the_top(tmp_path: Path):
    voc(tmp_path / "BCCD", "BloodImage_1", "JPEGImages", "Annotations")
    text(tmp_path / "BCCD/ImageSets/Main/train.txt", "BloodImage_1\n")
    text(tmp_path / "LICENSE", "MIT")
    text(tmp_path / "plot.py", "")
    arrange.bccd(tmp_path)
    assert top(tmp_path) == {"JPEGImages", "Annotations", "ImageSets", "LICENSE"}
    assert stems(tmp_path / "JPEGImages") == ["BloodImage_1"]


def test_raccoon_is_split_as_its_label_files_say(tmp_path: Path):
    for number in range(1, 5):
        voc(tmp_path, f"raccoon-{number}", "images", "annotations")
    head = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    rows = "".join(f"raccoon-{number}.jpg,20,10,raccoon,1,1,5,5\n" for number in (3, 1, 1))
    text(tmp_path / "data/train_labels.csv", head + rows)
    text(tmp_path / "data/test_labels.csv", head + "raccoon-4.jpg,20,10,raccoon,1,1,5,5\n")
    text(tmp_path / "xml_to_csv.py", "")
    text(tmp_path / "LICENSE", "MIT")
    arrange.raccoon(tmp_path)
    assert top(tmp_path) == {"JPEGImages", "Annotations", "ImageSets", "LICENSE"}
    assert lines(tmp_path / "ImageSets/Main/train.txt") == ["raccoon-1", "raccoon-3"]
    assert lines(tmp_path / "ImageSets/Main/val.txt") == ["raccoon-4"]
    assert len(stems(tmp_path / "JPEGImages")) == len(stems(tmp_path / "Annotations")) == 4
    assert readable(tmp_path) == {"train": 2, "val": 1}


def test_license_plates_of_all_folders_come_together(tmp_path: Path):
    for split, names in (("train", ["day.mp4#t=1", "day.mp4#t=2"]), ("valid", ["night.mp4#t=3"])):
        for name in names:
            voc(tmp_path / "dataset" / split, name, "images", "annots")
    text(tmp_path / "README.md", "")
    arrange.license_plates(tmp_path)
    assert top(tmp_path) == {"JPEGImages", "Annotations", "ImageSets"}
    assert lines(tmp_path / "ImageSets/Main/train.txt") == ["day.mp4#t=1", "day.mp4#t=2"]
    assert lines(tmp_path / "ImageSets/Main/val.txt") == ["night.mp4#t=3"]
    assert stems(tmp_path / "Annotations") == ["day.mp4#t=1", "day.mp4#t=2", "night.mp4#t=3"]
    assert readable(tmp_path) == {"train": 2, "val": 1}


def test_license_plates_with_one_name_in_two_folders_are_refused(tmp_path: Path):
    for split in ("train", "valid"):
        voc(tmp_path / "dataset" / split, "same", "images", "annots")
    with pytest.raises(DataError, match="another folder of the archive has a file of this name too"):
        arrange.license_plates(tmp_path)


def test_pets_keep_the_images_that_have_a_head_box(tmp_path: Path):
    for number in range(10):
        voc(tmp_path, f"Abyssinian_{number}", "images", "annotations/xmls")
    image(tmp_path / "images/beagle_1.jpg")
    text(tmp_path / "images/Abyssinian_1.mat", "")
    text(tmp_path / "annotations/README", "Oxford")
    arrange.oxford_pets(tmp_path)
    assert top(tmp_path) == {"JPEGImages", "Annotations", "ImageSets", "README.txt"}
    assert len(stems(tmp_path / "JPEGImages")) == 10
    assert lines(tmp_path / "ImageSets/Main/val.txt") == ["Abyssinian_0", "Abyssinian_5"]
    assert len(lines(tmp_path / "ImageSets/Main/train.txt")) == 8
    assert readable(tmp_path) == {"train": 8, "val": 2}


def penn_fudan(root: Path, count: int) -> None:
    """One person in the even images, two in the odd ones; the masks show where they are."""
    for number in range(count):
        name = f"FudanPed{number:05}"
        image(root / "PNGImages" / f"{name}.png", (40, 30))
        boxes = [(3, 5, 12, 24), (20, 1, 40, 30)][: 1 + number % 2]
        mask = np.zeros((30, 40), np.uint8)
        details = ""
        for value, (x1, y1, x2, y2) in enumerate(boxes, start=1):
            mask[y1 - 1 : y2, x1 - 1 : x2] = value
            details += FUDAN_OBJECT.format(number=value, name=name, x1=x1, y1=y1, x2=x2, y2=y2)
        (root / "PedMasks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "PedMasks" / f"{name}_mask.png")
        text(root / "Annotation" / f"{name}.txt", FUDAN_HEAD.format(name=name, count=len(boxes)) + details)
    text(root / "readme.txt", "1. Database description")
    text(root / "added-object-list.txt", "")


def test_penn_fudan_becomes_coco_json_with_boxes_around_the_masks(tmp_path: Path):
    penn_fudan(tmp_path, 10)
    arrange.penn_fudan(tmp_path)
    assert top(tmp_path) == {"images", "annotations", "masks", "readme.txt"}
    val, _report = read_split_files(find_split(tmp_path, "val"))
    train, report = read_split_files(find_split(tmp_path, "train"))
    assert report.is_sound
    assert (len(train), len(val)) == (8, 2)
    assert val.file_name(0) == "FudanPed00000.png"
    assert train.class_map.names == ("pedestrian",)
    for index in (train, val):
        for row in range(len(index)):
            mask = np.asarray(Image.open(tmp_path / "masks" / f"{Path(index.file_name(row)).stem}_mask.png"))
            boxes = index.boxes_xyxy[index.offsets[row] : index.offsets[row + 1]]
            assert len(boxes) == mask.max()
            for value, box in enumerate(boxes, start=1):
                ys, xs = np.nonzero(mask == value)
                assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_penn_fudan_text_that_names_an_image_elsewhere_is_refused(tmp_path: Path):
    penn_fudan(tmp_path, 1)
    path = tmp_path / "Annotation/FudanPed00000.txt"
    path.write_text(path.read_text().replace("PNGImages/FudanPed00000.png", "PNGImages/../../secret.png"))
    with pytest.raises(DataError, match=r"names the image 'secret\.png', which is not in PNGImages"):
        arrange.penn_fudan(tmp_path)


def balloon(root: Path) -> None:
    for split in ("train", "val"):
        image(root / split / "1_a.jpg", (60, 40))
        image(root / split / "2_b.jpg", (30, 20))
        square = {"name": "polygon", "all_points_x": [10, 30, 30, 10], "all_points_y": [5, 5, 25, 25]}
        triangle = {"name": "polygon", "all_points_x": [0, 8, 0], "all_points_y": [0, 0, 6]}
        content = {
            # Both forms that the annotation tool has written: numbered regions, and a list.
            "2_b.jpg99": {
                "filename": "2_b.jpg",
                "size": 99,
                "regions": [{"shape_attributes": triangle, "region_attributes": {}}],
            },
            "1_a.jpg88": {
                "filename": "1_a.jpg",
                "size": 88,
                "regions": {"0": {"shape_attributes": square}, "1": {"shape_attributes": triangle}},
            },
            "3_c.jpg77": {"filename": "3_c.jpg", "size": 77, "regions": {}},
        }
        text(root / split / "via_region_data.json", json.dumps(content))


def test_balloons_become_coco_json_with_polygons(tmp_path: Path):
    balloon(tmp_path)
    arrange.balloon(tmp_path)
    assert top(tmp_path) == {"train", "val", "annotations"}
    for split in ("train", "val"):
        index, report = read_split_files(find_split(tmp_path, split))
        assert report.is_sound
        assert [index.file_name(row) for row in range(len(index))] == ["1_a.jpg", "2_b.jpg"]
        assert index.sizes_hw.tolist() == [[40, 60], [20, 30]]
        assert index.boxes_xyxy.tolist() == [[10, 5, 30, 25], [0, 0, 8, 6], [0, 0, 8, 6]]
        assert index.area.tolist() == [400, 24, 24]
        assert find_split(tmp_path, split).images == tmp_path / split
    content = json.loads((tmp_path / "annotations/instances_train.json").read_text())
    assert content["annotations"][1]["segmentation"] == [[0, 0, 8, 0, 0, 6]]


@pytest.mark.parametrize("name", ["coco8", "coco128"])
def test_coco_pieces_get_a_data_file(tmp_path: Path, name: str):
    folders = ("train", "val") if name == "coco8" else ("train2017",)
    for folder in folders:
        image(tmp_path / "images" / folder / "000000000009.jpg")
        text(tmp_path / "labels" / folder / "000000000009.txt", "45 0.5 0.5 0.2 0.2\n")
    getattr(arrange, name)(tmp_path)
    content = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert content["train"] == f"images/{folders[0]}"
    assert content["val"] == f"images/{folders[-1]}"
    assert (tmp_path / content["path"] / content["val"]).is_dir()
    assert [content["names"][number] for number in range(80)] == list(COCO_NAMES)
    assert readable(tmp_path) == {"train": 1, "val": 1}


def test_the_names_of_coco_are_in_the_order_of_its_categories(shared_data: Path):
    content = json.loads((shared_data / "coco_mini/annotations/instances_val2017.json").read_text())
    assert tuple(c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])) == COCO_NAMES


@pytest.mark.parametrize(
    "name", ["bccd", "raccoon", "license_plates", "oxford_pets", "penn_fudan", "balloon", "coco8", "coco128"]
)
def test_an_archive_of_something_else_is_said(tmp_path: Path, name: str):
    text(tmp_path / "dataset/readme.txt", "")
    with pytest.raises(DataError, match=r"(is not in the archive|data set expected)"):
        getattr(arrange, name)(tmp_path)


def readable(root: Path) -> dict[str, int]:
    """Images of every split, as the commands of detrkit find them."""
    found = {split: read_split_files(files) for split, files in find_splits(root).items()}
    assert all(report.is_sound for _index, report in found.values())
    return {split: len(index) for split, (index, _report) in found.items()}


def test_the_real_bccd_is_laid_out_as_published(tmp_path: Path, shared_data: Path):
    shutil.copytree(shared_data / "bccd_voc", tmp_path / "BCCD", ignore=shutil.ignore_patterns("coco", "*.md"))
    arrange.bccd(tmp_path)
    listed = [lines(tmp_path / f"ImageSets/Main/{split}.txt") for split in ("train", "val", "test")]
    assert [len(names) for names in listed] == [205, 87, 72]
    everything = sorted(name for names in listed for name in names)
    assert everything == stems(tmp_path / "JPEGImages") == stems(tmp_path / "Annotations")
