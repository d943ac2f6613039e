"""The data sets that can be fetched: where they lie, what they hold, under which licence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from detrkit.curation.fetch import arrange
from detrkit.curation.fetch.entry import Archive, DatasetEntry, Licence, Part

TFDS = "TensorFlow Datasets"
TORCHVISION = "torchvision"


def _github(repository: str, commit: str, root: str, about: int | None = None) -> Archive:
    """A repository as GitHub packs it; neither its size nor its bytes are promised, only its commit."""
    name = f"{repository.partition('/')[2]}-{commit[:12]}.zip"
    url = f"https://codeload.github.com/{repository}/zip/{commit}"
    return Archive(url, root, name=name, commit=commit, about=about)


def _one(summary: str, *archives: Archive, layout: Callable[[Path], None] | None = None) -> tuple[Part, ...]:
    return (Part("all", summary, archives, layout),)


_COCO = "http://images.cocodataset.org"
_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
_ULTRALYTICS = "https://github.com/ultralytics/assets/releases/download/v0.0.0"

_COCO_LICENCE = Licence(
    "annotations CC BY 4.0; images under the Flickr licence of each",
    "https://cocodataset.org/#termsofuse",
    "The licence of an image stands in the annotation file; many forbid commercial use or changes.",
)
_VOC_LICENCE = Licence(
    "Flickr terms of use",
    "http://host.robots.ox.ac.uk/pascal/VOC/",
    "The images come from Flickr and stay under its terms; free for research, no licence for the images is given.",
)

_COCO_2017 = DatasetEntry(
    name="coco-2017",
    title="COCO 2017",
    images="118,287 train, 5,000 val",
    classes="80 (panoptic: 133)",
    licence=_COCO_LICENCE,
    source="https://cocodataset.org",
    layout="COCO 2017",
    default_parts=("train", "val", "annotations"),
    parts=(
        Part(
            "train",
            "training images",
            (
                Archive(
                    f"{_COCO}/zips/train2017.zip",
                    "train2017",
                    size=19_336_861_798,
                    sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                    hash_source=TFDS,
                ),
            ),
        ),
        Part(
            "val",
            "validation images",
            (
                Archive(
                    f"{_COCO}/zips/val2017.zip",
                    "val2017",
                    size=815_585_330,
                    sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                    hash_source=TFDS,
                ),
            ),
        ),
        Part(
            "annotations",
            "boxes, masks, keypoints and captions of train and val",
            (
                Archive(
                    f"{_COCO}/annotations/annotations_trainval2017.zip",
                    "annotations",
                    size=252_907_541,
                    sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                    hash_source=TFDS,
                    unpacked=850_000_000,
                ),
            ),
        ),
        Part(
            "panoptic",
            "panoptic annotations of train and val",
            (
                Archive(
                    f"{_COCO}/annotations/panoptic_annotations_trainval2017.zip",
                    "annotations",
                    size=860_725_834,
                    sha256="c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
                    hash_source=TFDS,
                    unpacked=2_200_000_000,
                    nested=(
                        ("annotations/panoptic_train2017.zip", "annotations"),
                        ("annotations/panoptic_val2017.zip", "annotations"),
                    ),
                ),
            ),
        ),
    ),
)

_VOC_2007 = DatasetEntry(
    name="voc-2007",
    title="Pascal VOC 2007",
    images="2,501 train, 2,510 val, 4,952 test",
    classes="20",
    licence=_VOC_LICENCE,
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
    layout="Pascal VOC",
    parts=(
        Part(
            "trainval",
            "training and validation images with their annotations",
            (
                Archive(
                    f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
                    "JPEGImages",
                    size=460_032_000,
                    sha256="7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
                    md5="c52e279531787c972589f7e41ab4ae64",
                    hash_source=f"{TFDS}; MD5 by {TORCHVISION}",
                ),
            ),
        ),
        Part(
            "test",
            "test images with their annotations",
            (
                Archive(
                    f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar",
                    "JPEGImages",
                    size=451_020_800,
                    sha256="6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
                    md5="b6e924de25625d8de591ea690078ad9f",
                    hash_source=f"{TFDS}; MD5 by {TORCHVISION}",
                ),
            ),
        ),
    ),
)

_VOC_2012 = DatasetEntry(
    name="voc-2012",
    title="Pascal VOC 2012",
    images="5,717 train, 5,823 val",
    classes="20",
    licence=_VOC_LICENCE,
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    layout="Pascal VOC",
    parts=_one(
        "training and validation images with their annotations",
        Archive(
            f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
            "JPEGImages",
            size=1_999_639_040,
            sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
            md5="6cd6e144f989b92b3379bac3b3de84fd",
            hash_source=f"{TFDS}; MD5 by {TORCHVISION}",
        ),
    ),
)

_PETS_ENTRY = DatasetEntry(
    name="oxford-pets",
    title="Oxford-IIIT Pet, head boxes",
    images="about 3,700 with boxes: four of five train, one of five val",
    classes="2 (cat, dog)",
    licence=Licence("CC BY-SA 4.0", "https://www.robots.ox.ac.uk/~vgg/data/pets/"),
    source="https://www.robots.ox.ac.uk/~vgg/data/pets/",
    layout="Pascal VOC",
    parts=_one(
        "images and head boxes",
        Archive(
            f"{_PETS}/images.tar.gz",
            "images",
            size=791_918_971,
            sha256="67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            md5="5c4f3ee8e5d25df40f4fd59a7f44e54c",
            hash_source=f"{TFDS}; MD5 by {TORCHVISION}",
        ),
        Archive(
            f"{_PETS}/annotations.tar.gz",
            "annotations",
            size=19_173_078,
            sha256="52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
            md5="95a8c909bbe2e81eed6a22bccdf3f68f",
            hash_source=f"{TFDS}; MD5 by {TORCHVISION}",
            unpacked=60_000_000,
        ),
        layout=arrange.oxford_pets,
    ),
)

_SMALL = (
    DatasetEntry(
        name="bccd",
        title="BCCD, blood cells",
        images="205 train, 87 val, 72 test",
        classes="3 (platelets, red and white blood cells)",
        licence=Licence("MIT", "https://github.com/Shenggan/BCCD_Dataset/blob/master/LICENSE"),
        source="https://github.com/Shenggan/BCCD_Dataset",
        layout="Pascal VOC",
        parts=_one(
            "images and boxes",
            _github("Shenggan/BCCD_Dataset", "d272fb14cdff6e473fafeeeba32aba5f560e9e43", "BCCD", about=8_000_000),
            layout=arrange.bccd,
        ),
    ),
    DatasetEntry(
        name="raccoon",
        title="Raccoon Detector Dataset",
        images="200: train and val as in its label files",
        classes="1",
        licence=Licence(
            "MIT",
            "https://github.com/datitran/raccoon_dataset",
            "The images were found with Google and on Pixabay.",
        ),
        source="https://github.com/datitran/raccoon_dataset",
        layout="Pascal VOC",
        parts=_one(
            "images and boxes",
            Archive(
                "https://codeload.github.com/datitran/raccoon_dataset/zip/refs/heads/master",
                "annotations",
                name="raccoon_dataset-master.zip",
            ),
            layout=arrange.raccoon,
        ),
    ),
    DatasetEntry(
        name="license-plates",
        title="Romanian licence plates",
        images="534: four of five train, the rest val",
        classes="1",
        licence=Licence("MIT", "https://github.com/RobertLucian/license-plate-dataset/blob/master/LICENSE"),
        source="https://github.com/RobertLucian/license-plate-dataset",
        layout="Pascal VOC",
        parts=_one(
            "images and boxes",
            _github("RobertLucian/license-plate-dataset", "f00f309e4564e7f386fd7641569d861e2910d65f", "dataset"),
            layout=arrange.license_plates,
        ),
    ),
    DatasetEntry(
        name="chess",
        title="Chess Pieces by Roboflow",
        images="202 train, 58 valid, 29 test",
        classes="12",
        licence=Licence("Public Domain", "https://public.roboflow.com/object-detection/chess-full"),
        source="https://github.com/jsansao/ChessPiecesv23",
        layout="Roboflow COCO",
        parts=_one(
            "images and boxes",
            _github("jsansao/ChessPiecesv23", "246442c35465cdc9c917cdd0aa36698320def063", "train"),
        ),
    ),
    DatasetEntry(
        name="cones",
        title="Cones and cubes of a robot competition",
        images="1,275 train, 124 valid, 63 test",
        classes="2",
        licence=Licence("CC BY 4.0", "https://universe.roboflow.com/trigon5990/conesandcubes"),
        source="https://github.com/7130-7th/cone_cube_detect_test_1.0",
        layout="YOLO",
        parts=_one(
            "images and labels",
            _github("7130-7th/cone_cube_detect_test_1.0", "b4b47c80fa09784c095a52175d96b86c17d0be59", "data.yaml"),
        ),
    ),
    DatasetEntry(
        name="penn-fudan",
        title="Penn-Fudan pedestrians",
        images="170: four of five train, one of five val",
        classes="1 (pedestrian), with masks",
        licence=Licence(
            "none stated",
            "https://www.cis.upenn.edu/~jshi/ped_html/",
            "Published for research; ask the authors before any other use.",
        ),
        source="https://www.cis.upenn.edu/~jshi/ped_html/",
        layout="COCO JSON",
        parts=_one(
            "images, boxes and masks, made into COCO JSON",
            Archive("https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip", "PNGImages", about=53_000_000),
            layout=arrange.penn_fudan,
        ),
    ),
    DatasetEntry(
        name="balloon",
        title="Balloons of the Mask R-CNN tutorial",
        images="61 train, 13 val",
        classes="1, with polygons",
        licence=Licence(
            "Flickr, commercial use and changes allowed; annotations MIT with their repository",
            "https://github.com/matterport/Mask_RCNN/releases/tag/v2.1",
            "The authors say that they took images of Flickr whose licence allows commercial use and changes; the "
            "licence of each is not listed.",
        ),
        source="https://github.com/matterport/Mask_RCNN/tree/master/samples/balloon",
        layout="COCO JSON",
        parts=_one(
            "images and polygons, made into COCO JSON",
            Archive(
                "https://github.com/matterport/Mask_RCNN/releases/download/v2.1/balloon_dataset.zip",
                "train",
                about=39_000_000,
            ),
            layout=arrange.balloon,
        ),
    ),
)

_ULTRALYTICS_LICENCE = dataclasses.replace(
    _COCO_LICENCE,
    name="images under the Flickr licence of each; labels AGPL-3.0 by Ultralytics",
    url="https://github.com/ultralytics/assets",
)
_COCO_PIECES = (
    DatasetEntry(
        name="coco8",
        title="COCO8 by Ultralytics, to try a pipeline",
        images="4 train, 4 val",
        classes="80",
        licence=_ULTRALYTICS_LICENCE,
        source="https://docs.ultralytics.com/datasets/detect/coco8/",
        layout="YOLO",
        parts=_one(
            "images and labels",
            Archive(f"{_ULTRALYTICS}/coco8.zip", "images", about=450_000),
            layout=arrange.coco8,
        ),
    ),
    DatasetEntry(
        name="coco128",
        title="COCO128 by Ultralytics, the first images of train2017",
        images="128, for train and val alike",
        classes="80",
        licence=_ULTRALYTICS_LICENCE,
        source="https://docs.ultralytics.com/datasets/detect/coco128/",
        layout="YOLO",
        parts=_one(
            "images and labels",
            Archive(f"{_ULTRALYTICS}/coco128.zip", "images", about=7_000_000),
            layout=arrange.coco128,
        ),
    ),
)

CATALOGUE: Mapping[str, DatasetEntry] = {
    entry.name: entry for entry in (_COCO_2017, _VOC_2007, _VOC_2012, _PETS_ENTRY, *_SMALL, *_COCO_PIECES)
}
"""Every data set that can be fetched by name."""
