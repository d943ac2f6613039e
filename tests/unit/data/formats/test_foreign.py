"""Formats that are not read are named for what they are, wherever they lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detrkit.data.formats import find_split
from detrkit.data.formats.foreign import FOREIGN_FORMATS, describe_foreign
from detrkit.data.read import read_split_files
from detrkit.errors import DataError
from tests.unit.data.factory import coco, image_entry, voc_xml, write_noise

CVAT = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{}</annotations>'
KITTI = "Car 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 69.44 -1.56\n"
SAMPLES = {
    "CVAT for images XML": ("annotations.xml", CVAT.format('<image id="0" name="1.png"></image>')),
    "CVAT for video XML": ("annotations.xml", CVAT.format('<track id="0"></track>')),
    "labelme JSON": ("1.json", '{"version": "5", "shapes": [{"label": "a"}], "imagePath": "1.png"}'),
    "VGG Image Annotator (VIA) JSON": ("via.json", '{"1.png": {"regions": [{"shape_attributes": {}}]}}'),
    "VGG Image Annotator (VIA) CSV": (
        "via.csv",
        "#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes\n",
    ),
    "Label Studio JSON": ("project.json", '[{"annotations": [{"result": [{"from_name": "label"}]}]}]'),
    "Labelbox export": ("export.ndjson", '{"data_row": {"id": "x"}}\n'),
    "Supervisely JSON": ("1.png.json", '{"objects": [{"classTitle": "a", "points": {"exterior": []}}]}'),
    "CreateML JSON": (
        "_annotations.createml.json",
        '[{"image": "0.png", "annotations": []}, {"annotations": [{"coordinates": {"x": 1}}]}]',
    ),
    "Datumaro JSON": ("default.json", '{"dm_format_version": "1.0", "items": []}'),
    "BDD100K or Scalabel JSON": ("det.json", '[{"name": "1.png", "labels": [{"box2d": {"x1": 1}}]}]'),
    "CrowdHuman odgt": ("train.odgt", '{"ID": "1", "gtboxes": [{"fbox": [1, 2, 3, 4]}]}\n'),
    "Hugging Face imagefolder (metadata.jsonl)": (
        "metadata.jsonl",
        '{"file_name": "1.png", "objects": {"bbox": [[1, 2, 3, 4]]}}\n',
    ),
    "Open Images CSV": ("train.csv", "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n"),
    "CSV of boxes": ("labels.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n"),
    "TFRecord": ("train.tfrecord-00000-of-00002", "\0"),
    "Parquet (Hugging Face data set)": ("train.parquet", "PAR1\0"),
    "KITTI labels": ("1.txt", KITTI),
    "DOTA labels": ("1.txt", "imagesource:x\ngsd:0.1\n1 2 3 2 3 4 1 4 plane 0\n"),
    "VisDrone labels": ("1.txt", "684,8,273,116,0,0,0,0\n406,119,265,70,1,4,0,0\n"),
    "MOT Challenge tracks (or VisDrone video)": ("gt.txt", "1,1,912,484,97,109,0,7,1\n"),
    "class and corners in pixels (mAP tools)": ("1.txt", "cat 0.9 10 20 30 40\n"),
    "WIDER FACE lists": ("faces.txt", "a/1.jpg\n1\n449 330 122 149 0 0 0 0 0 0\n"),
}


def test_every_row_of_the_table_has_a_sample() -> None:
    assert set(SAMPLES) == {foreign.name for foreign in FOREIGN_FORMATS}
    assert all(foreign.advice for foreign in FOREIGN_FORMATS)


@pytest.mark.parametrize("folder", ["images", "annotations", "train/deep"])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_foreign_format_is_named_with_its_advice(tmp_path: Path, name: str, folder: str) -> None:
    file, text = SAMPLES[name]
    for place in ("images", folder):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
    write_noise(tmp_path / "images" / "1.png", 40, 60)
    (tmp_path / folder / file).write_text(text)
    advice = next(foreign.advice for foreign in FOREIGN_FORMATS if foreign.name == name)
    with pytest.raises(DataError) as told:
        read_split_files(find_split(tmp_path, "train"))
    assert name in str(told.value)
    assert advice in str(told.value)


@pytest.mark.parametrize("name", ["KITTI labels", "VisDrone labels", "DOTA labels"])
def test_foreign_texts_are_not_read_as_yolo(tmp_path: Path, name: str) -> None:
    for folder in ("images/train", "labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    write_noise(tmp_path / "images/train/1.png", 40, 60)
    (tmp_path / "labels/train/1.txt").write_text(SAMPLES[name][1])
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat]\n")
    with pytest.raises(DataError, match=name):
        read_split_files(find_split(tmp_path, "train"))


@pytest.mark.parametrize("name", ["labelme JSON", "Datumaro JSON"])
def test_foreign_json_where_coco_is_looked_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations/instances_train.json").write_text(SAMPLES[name][1])
    with pytest.raises(DataError, match=name):
        read_split_files(find_split(tmp_path, "train"))


def test_what_is_read_is_not_foreign(tmp_path: Path) -> None:
    texts = {
        "1.txt": "0 0.5 0.5 0.2 0.4\n",
        "2.txt": "0,0.5,0.5,0.2,0.4\n",
        "train.txt": "images/1.jpg\nimages/2.jpg\n",
        "classes.txt": "cat\ndog\n",
        "1.xml": voc_xml("1.png", [("cat", 1, 2, 30, 20)]),
        "coco.json": json.dumps(coco([image_entry(1, "1.png")], [])),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert not describe_foreign(tmp_path / name), name
