"""The data sets that can be fetched: where they lie, what they hold, under which licence.

Only sets with a stated licence and an address that stays: with a published hash, or pinned to a commit.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from detrkit.download import file_name_of


class Archive(msgspec.Struct, frozen=True, kw_only=True):
    """One file to fetch and unpack.

    Args:
        url: address
        root: path inside that belongs to the top of the data set; the folders above it are dropped
        name: file name to keep it under; the end of the address if empty
        size: published number of bytes; None if none is published
        sha256: SHA-256 published by TensorFlow Datasets
        md5: MD5 published by torchvision
        commit: commit that a GitHub archive is of; GitHub writes it into the archive's comment
        unpacked: bytes once unpacked, roughly; the size of the archive if 0, as images hardly shrink
        nested: archives inside it, unpacked into the folder that they lie in
    """

    url: str
    root: str
    name: str = ""
    size: int | None = None
    sha256: str = ""
    md5: str = ""
    commit: str = ""
    unpacked: int = 0
    nested: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Name of the file on the disk."""
        return self.name or file_name_of(self.url)

    @property
    def check(self) -> str:
        """What the content is checked against, in words."""
        if self.commit:
            return f"no published hash; commit {self.commit[:12]}"
        return "SHA-256 published by TensorFlow Datasets" + ("; MD5 by torchvision" if self.md5 else "")


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Archives that are fetched together.

    Args:
        summary: content in words
        archives: its files
        on_request: fetched only if named
        voc_folders: folders of the images and of their XML files, where these are to be laid out as Pascal VOC
    """

    summary: str
    archives: tuple[Archive, ...]
    on_request: bool = False
    voc_folders: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """Bytes to fetch; None where the server does not say before."""
        sizes = [archive.size for archive in self.archives]
        return None if None in sizes else sum(size or 0 for size in sizes)


class Licence(msgspec.Struct, frozen=True):
    """Terms of use: short name, such as MIT, where it is stated, and what else to know."""

    name: str
    url: str
    note: str = ""


class DatasetEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A data set that can be fetched: its parts, and what people must know, in words."""

    name: str
    title: str
    images: str
    classes: str
    licence: Licence
    source: str
    layout: str
    parts: Mapping[str, Part]

    @property
    def defaults(self) -> tuple[str, ...]:
        """Names of the parts that are fetched if none is named."""
        return tuple(name for name, part in self.parts.items() if not part.on_request)


def _github(repository: str, commit: str, root: str) -> Mapping[str, Part]:
    """Return the parts of a repository as GitHub packs it; only its commit is promised, not its bytes."""
    name = f"{repository.partition('/')[2]}-{commit[:12]}.zip"
    url = f"https://codeload.github.com/{repository}/zip/{commit}"
    archive = Archive(url=url, root=root, name=name, commit=commit)
    return {"all": Part(summary="images and boxes", archives=(archive,))}


_COCO = "http://images.cocodataset.org"
_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets"
_VOC_LICENCE = Licence(
    "Flickr terms of use",
    "http://host.robots.ox.ac.uk/pascal/VOC/",
    "The images come from Flickr and stay under its terms; free for research, no licence for the images is given.",
)

_ENTRIES = (
    DatasetEntry(
        name="coco-2017",
        title="COCO 2017",
        images="118,287 train, 5,000 val",
        classes="80 (panoptic: 133)",
        licence=Licence(
            "annotations CC BY 4.0; images under the Flickr licence of each",
            "https://cocodataset.org/#termsofuse",
            "The licence of an image stands in the annotation file; many forbid commercial use or changes.",
        ),
        source="https://cocodataset.org",
        layout="COCO 2017",
        parts={
            "train": Part(
                summary="training images",
                archives=(
                    Archive(
                        url=f"{_COCO}/zips/train2017.zip",
                        root="train2017",
                        size=19_336_861_798,
                        sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                    ),
                ),
            ),
            "val": Part(
                summary="validation images",
                archives=(
                    Archive(
                        url=f"{_COCO}/zips/val2017.zip",
                        root="val2017",
                        size=815_585_330,
                        sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                    ),
                ),
            ),
            "annotations": Part(
                summary="boxes, masks, keypoints and captions of train and val",
                archives=(
                    Archive(
                        url=f"{_COCO}/annotations/annotations_trainval2017.zip",
                        root="annotations",
                        size=252_907_541,
                        sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                        unpacked=850_000_000,
                    ),
                ),
            ),
            "panoptic": Part(
                summary="panoptic annotations of train and val",
                on_request=True,
                archives=(
                    Archive(
                        url=f"{_COCO}/annotations/panoptic_annotations_trainval2017.zip",
                        root="annotations",
                        size=860_725_834,
                        sha256="c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
                        unpacked=2_200_000_000,
                        nested=("annotations/panoptic_train2017.zip", "annotations/panoptic_val2017.zip"),
                    ),
                ),
            ),
        },
    ),
    DatasetEntry(
        name="voc-2007",
        title="Pascal VOC 2007",
        images="2,501 train, 2,510 val, 4,952 test",
        classes="20",
        licence=_VOC_LICENCE,
        source="http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
        layout="Pascal VOC",
        parts={
            "trainval": Part(
                summary="training and validation images with their annotations",
                archives=(
                    Archive(
                        url=f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
                        root="JPEGImages",
                        size=460_032_000,
                        sha256="7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
                        md5="c52e279531787c972589f7e41ab4ae64",
                    ),
                ),
            ),
            "test": Part(
                summary="test images with their annotations",
                archives=(
                    Archive(
                        url=f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar",
                        root="JPEGImages",
                        size=451_020_800,
                        sha256="6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
                        md5="b6e924de25625d8de591ea690078ad9f",
                    ),
                ),
            ),
        },
    ),
    DatasetEntry(
        name="voc-2012",
        title="Pascal VOC 2012",
        images="5,717 train, 5,823 val",
        classes="20",
        licence=_VOC_LICENCE,
        source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        layout="Pascal VOC",
        parts={
            "all": Part(
                summary="training and validation images with their annotations",
                archives=(
                    Archive(
                        url=f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
                        root="JPEGImages",
                        size=1_999_639_040,
                        sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
                        md5="6cd6e144f989b92b3379bac3b3de84fd",
                    ),
                ),
            ),
        },
    ),
    DatasetEntry(
        name="oxford-pets",
        title="Oxford-IIIT Pet, head boxes",
        images="about 3,700 with boxes: four of five train, one of five val",
        classes="2 (cat, dog)",
        licence=Licence("CC BY-SA 4.0", f"{_PETS}/"),
        source=f"{_PETS}/",
        layout="Pascal VOC",
        parts={
            "all": Part(
                summary="images and head boxes",
                voc_folders=("images", "annotations/xmls"),
                archives=(
                    Archive(
                        url=f"{_PETS}/data/images.tar.gz",
                        root="images",
                        size=791_918_971,
                        sha256="67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
                        md5="5c4f3ee8e5d25df40f4fd59a7f44e54c",
                    ),
                    Archive(
                        url=f"{_PETS}/data/annotations.tar.gz",
                        root="annotations",
                        size=19_173_078,
                        sha256="52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
                        md5="95a8c909bbe2e81eed6a22bccdf3f68f",
                        unpacked=60_000_000,
                    ),
                ),
            ),
        },
    ),
    DatasetEntry(
        name="bccd",
        title="BCCD, blood cells",
        images="205 train, 87 val, 72 test",
        classes="3 (platelets, red and white blood cells)",
        licence=Licence("MIT", "https://github.com/Shenggan/BCCD_Dataset/blob/master/LICENSE"),
        source="https://github.com/Shenggan/BCCD_Dataset",
        layout="Pascal VOC",
        parts=_github("Shenggan/BCCD_Dataset", "d272fb14cdff6e473fafeeeba32aba5f560e9e43", "JPEGImages"),
    ),
    DatasetEntry(
        name="chess",
        title="Chess Pieces by Roboflow",
        images="202 train, 58 valid, 29 test",
        classes="12",
        licence=Licence("Public Domain", "https://public.roboflow.com/object-detection/chess-full"),
        source="https://github.com/jsansao/ChessPiecesv23",
        layout="Roboflow COCO",
        parts=_github("jsansao/ChessPiecesv23", "246442c35465cdc9c917cdd0aa36698320def063", "train"),
    ),
    DatasetEntry(
        name="cones",
        title="Cones and cubes of a robot competition",
        images="1,275 train, 124 valid, 63 test",
        classes="2",
        licence=Licence("CC BY 4.0", "https://universe.roboflow.com/trigon5990/conesandcubes"),
        source="https://github.com/7130-7th/cone_cube_detect_test_1.0",
        layout="YOLO",
        parts=_github(
            "7130-7th/cone_cube_detect_test_1.0", "b4b47c80fa09784c095a52175d96b86c17d0be59", "data.yaml"
        ),
    ),
)

CATALOGUE: Mapping[str, DatasetEntry] = {entry.name: entry for entry in _ENTRIES}
"""Every data set that can be fetched by name."""

REMOVED: Mapping[str, tuple[str, str]] = {
    "raccoon": ("https://github.com/datitran/raccoon_dataset", ""),
    "license-plates": ("https://github.com/RobertLucian/license-plate-dataset", ""),
    "penn-fudan": ("https://www.cis.upenn.edu/~jshi/ped_html/", "Penn-Fudan text"),
    "balloon": ("https://github.com/matterport/Mask_RCNN/releases/tag/v2.1", "VGG Image Annotator JSON"),
    "coco8": ("https://docs.ultralytics.com/datasets/detect/coco8/", ""),
    "coco128": ("https://docs.ultralytics.com/datasets/detect/coco128/", ""),
}
"""Page of each data set that earlier versions fetched, and its format where detrkit does not read that."""
