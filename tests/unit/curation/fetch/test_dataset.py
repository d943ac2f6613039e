"""Whole data sets, from a server on this machine into their folders."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

from detrkit.curation.fetch import Archive, DatasetEntry, FetchResult, Licence, Part, dataset, fetch_dataset
from detrkit.data.formats import find_split, find_splits
from detrkit.data.read import read_split_files
from detrkit.errors import DataError, DownloadError, UsageError
from tests.support.web_server import Hosted, Server

RECEIPT = dataset.RECEIPT
COMMIT = "d272fb14cdff6e473fafeeeba32aba5f560e9e43"
VOC_XML = """<annotation><filename>{name}.jpg</filename><size><width>20</width><height>10</height></size>
<object><name>thing</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>
</annotation>"""


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (width, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def zipped(members: dict[str, bytes], comment: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
        file.comment = comment.encode()
    return buffer.getvalue()


def instances(split: str) -> bytes:
    images = [{"id": i, "file_name": f"{i:012}.jpg", "width": 19 + i, "height": 19 + i} for i in (1, 2)]
    box = {"category_id": 7, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0}
    annotations = [{"id": i, "image_id": i, **box} for i in (1, 2)]
    categories = [{"id": 7, "name": f"cat of {split}"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


class Shop:
    """A small COCO 2017 on the server, with all its parts, and a folder to fetch it into."""

    def __init__(self, server: Server, folder: Path):
        self.server, self.folder = server, folder
        self.said: list[str] = []
        self.files: dict[str, Hosted] = {}
        for split in ("train", "val"):
            members = {f"{split}2017/{number:012}.jpg": jpeg(19 + number, 19 + number) for number in (1, 2)}
            self.host(f"{split}2017.zip", zipped(members))
        both = {f"annotations/instances_{split}2017.json": instances(split) for split in ("train", "val")}
        self.host("annotations.zip", zipped(both))
        inner = zipped({"panoptic_val2017/1.png": b"png", "__MACOSX/panoptic_val2017/._1.png": b"junk"})
        panoptic = {"annotations/panoptic_val2017.json": b"{}", "annotations/panoptic_val2017.zip": inner}
        self.host("panoptic.zip", zipped(panoptic))

    def host(self, name: str, content: bytes, **how: Any) -> Hosted:
        self.files[name] = self.server.host(name, content, **how)
        return self.files[name]

    def archive(self, name: str, root: str, **more: Any) -> Archive:
        more = {"sha256": self.files[name].sha256, **more}
        return Archive(url=self.server.address(name), root=root, **more)

    def entry(self, name: str = "coco-mini", **parts: Part) -> DatasetEntry:
        nested = ("annotations/panoptic_val2017.zip",)
        panoptic = self.archive("panoptic.zip", "annotations", nested=nested)
        usual = {
            "train": self.part(self.archive("train2017.zip", "train2017")),
            "val": self.part(self.archive("val2017.zip", "val2017")),
            "annotations": self.part(self.archive("annotations.zip", "annotations")),
            "panoptic": Part(summary="", archives=(panoptic,), on_request=True),
        }
        return DatasetEntry(
            name=name,
            title="COCO mini",
            images="2 + 2",
            classes="1",
            licence=Licence("CC BY 4.0", "https://example.org/terms", "Images are their makers'."),
            source="https://example.org",
            layout="COCO 2017",
            parts=parts or usual,
        )

    @staticmethod
    def part(*archives: Archive, **more: Any) -> Part:
        return Part(summary="", archives=archives, **more)

    def one(self, *archives: Archive, **more: Any) -> DatasetEntry:
        return self.entry(all=self.part(*archives, **more))

    def fetch(self, entry: DatasetEntry | None = None, **more: Any) -> FetchResult:
        return fetch_dataset(entry or self.entry(), self.folder, say=self.said.append, **more)

    def bring(self, content: bytes, folder: str = "archives") -> None:
        (self.folder / folder).mkdir(parents=True)
        (self.folder / folder / "val2017.zip").write_bytes(content)

    def tree(self) -> list[str]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in files)

    def heard(self, text: str) -> bool:
        return any(text in line for line in self.said)


@pytest.fixture
def shop(web_server: Server, tmp_path: Path) -> Shop:
    return Shop(web_server, tmp_path / "coco")


VAL = ["val2017/000000000001.jpg", "val2017/000000000002.jpg"]
DEFAULT_TREE = [
    ".detrkit-fetch.json",
    "LICENCE.txt",
    "annotations/instances_train2017.json",
    "annotations/instances_val2017.json",
    "train2017/000000000001.jpg",
    "train2017/000000000002.jpg",
    *VAL,
]


def test_a_data_set_is_fetched_into_the_layout_that_is_read(shop: Shop):
    result = shop.fetch()
    assert shop.tree() == DEFAULT_TREE
    assert result.fetched == ("train", "val", "annotations")
    assert result.present["train"].files == 2
    for split in ("train", "val"):
        index, report = read_split_files(find_split(shop.folder, split))
        assert len(index) == 2
        assert report.is_sound
    assert not (shop.folder / ".detrkit-fetch").exists()


def test_the_licence_is_said_before_and_written(shop: Shop):
    shop.fetch()
    said = [number for number, line in enumerate(shop.said) if "licence CC BY 4.0" in line]
    fetching = [number for number, line in enumerate(shop.said) if line.startswith("Fetching")]
    assert said[0] < fetching[0]
    text = (shop.folder / "LICENCE.txt").read_text()
    for fact in ("CC BY 4.0", "https://example.org/terms", "Images are their makers'."):
        assert fact in text


def test_the_receipt_tells_addresses_hashes_and_no_time(shop: Shop):
    shop.fetch(parts=["val"])
    content = json.loads((shop.folder / RECEIPT).read_text())
    assert content["name"] == "coco-mini"
    assert content["licence"]["name"] == "CC BY 4.0"
    hosted = shop.files["val2017.zip"]
    archive = {
        "url": shop.server.address("val2017.zip"),
        "size": len(hosted.content),
        "sha256": hosted.sha256,
        "md5": None,
        "check": "SHA-256 published by TensorFlow Datasets",
        "commit": None,
    }
    size = len(jpeg(20, 20)) + len(jpeg(21, 21))
    assert content["parts"] == {"val": {"archives": [archive], "folders": {"val2017": 2}, "bytes": size}}
    first = (shop.folder / RECEIPT).read_bytes()
    shop.fetch(parts=["val"], force=True)
    assert (shop.folder / RECEIPT).read_bytes() == first


def test_a_complete_data_set_is_left_alone(shop: Shop):
    shop.fetch()
    before = shop.server.requests
    stamps = {path: path.stat().st_mtime_ns for path in shop.folder.rglob("*") if path.is_file()}
    result = shop.fetch()
    assert result.fetched == ()
    assert set(result.present) == {"train", "val", "annotations"}
    assert shop.server.requests == before
    assert {path: path.stat().st_mtime_ns for path in shop.folder.rglob("*") if path.is_file()} == stamps
    assert shop.heard("val is complete in")


def test_other_parts_can_be_added_later(shop: Shop):
    assert shop.fetch(parts=["val"]).fetched == ("val",)
    assert shop.fetch(parts=["annotations"]).fetched == ("annotations",)
    assert shop.fetch(parts=["panoptic", "train", "val"]).fetched == ("train", "panoptic")
    panoptic = ["annotations/panoptic_val2017.json", "annotations/panoptic_val2017/1.png"]
    assert shop.tree() == sorted([*DEFAULT_TREE, *panoptic])


def test_archives_are_kept_if_wanted_and_used_again(shop: Shop):
    shop.fetch(parts=["val"], keep_archives=True)
    kept = shop.folder / "archives/val2017.zip"
    assert kept.read_bytes() == shop.files["val2017.zip"].content
    (shop.folder / VAL[1]).unlink()
    before = shop.server.requests
    assert shop.fetch(parts=["val"]).fetched == ("val",)
    assert shop.server.requests == before
    assert kept.exists()


def test_without_a_network_an_archive_can_be_brought_by_hand(shop: Shop):
    entry = shop.entry()
    shop.bring(shop.server.files.pop("val2017.zip").content)
    assert shop.fetch(entry, parts=["val"]).fetched == ("val",)
    assert shop.server.requests == 0
    del shop.server.files["train2017.zip"]
    with pytest.raises(DownloadError, match=rf"404.*put it as train2017.zip into {shop.folder}/archives"):
        shop.fetch(entry, parts=["train"])


def test_a_damaged_archive_of_an_earlier_run_is_fetched_anew_and_one_brought_by_hand_is_refused(shop: Shop):
    shop.bring(b"damaged since", ".detrkit-fetch")
    assert shop.fetch(parts=["val"]).fetched == ("val",)
    assert shop.tree() == [*DEFAULT_TREE[:2], *VAL]
    (shop.folder / VAL[0]).unlink()
    shop.bring(b"something else")
    with pytest.raises(DataError, match=r"archives/val2017\.zip: its SHA-256 is .*; remove it to have it fetched"):
        shop.fetch(parts=["val"])


def test_a_wrong_hash_leaves_no_data_behind(shop: Shop):
    with pytest.raises(DownloadError, match="its SHA-256 is"):
        shop.fetch(shop.one(shop.archive("val2017.zip", "val2017", sha256="0" * 64)))
    assert [name for name in shop.tree() if not name.endswith("lock")] == ["LICENCE.txt"]
    assert shop.fetch(shop.one(shop.archive("val2017.zip", "val2017"))).fetched == ("all",)


def test_a_hostile_archive_leaves_no_data_behind_nor_does_one_inside_an_archive(shop: Shop, tmp_path: Path):
    shop.host("evil.zip", zipped({"set/good.jpg": b"good", "set/../../../evil.jpg": b"evil"}))
    with pytest.raises(DataError, match=r"evil\.zip is not unpacked: .*leads outside"):
        shop.fetch(shop.one(shop.archive("evil.zip", "set")))
    inner = zipped({"../../../../evil.jpg": b"evil"})
    shop.host("outer.zip", zipped({"annotations/good.jpg": b"{}", "annotations/in.zip": inner}))
    with pytest.raises(DataError, match=r"in\.zip is not unpacked: .*leads outside"):
        shop.fetch(shop.one(shop.archive("outer.zip", "annotations", nested=("annotations/in.zip",))))
    assert not list(tmp_path.rglob("evil.jpg"))
    assert not list(tmp_path.rglob("good.jpg"))


def test_an_archive_of_something_else_is_refused(shop: Shop):
    with pytest.raises(DataError, match=r"val2017\.zip does not hold labels, as it should"):
        shop.fetch(shop.one(shop.archive("val2017.zip", "labels")))
    assert not (shop.folder / "val2017").exists()


def test_a_repository_is_pinned_to_its_commit_and_its_hash_is_noted(shop: Shop):
    shop.host("repository.zip", zipped({"r/images/a.jpg": b"x"}, comment="0" * 40))
    pinned = shop.one(shop.archive("repository.zip", "images", commit=COMMIT, sha256=""))
    with pytest.raises(DataError, match=f"holds commit {'0' * 40}, expected {COMMIT}"):
        shop.fetch(pinned)
    hosted = shop.host("repository.zip", zipped({"r/images/a.jpg": b"x"}, comment=COMMIT), etag='"v2"')
    archive = shop.fetch(pinned, force=True).present["all"].archives[0]
    assert (archive.commit, archive.sha256) == (COMMIT, hosted.sha256)
    assert "no published hash" in archive.check


@pytest.mark.parametrize("where", ["unpack", "_merge", "_write_receipt"])
def test_a_run_stopped_while_it_unpacks_goes_on_without_a_download(
    shop: Shop, where: str, monkeypatch: pytest.MonkeyPatch
):
    def stop(*_what: Any, **_more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dataset, where, stop)
        with pytest.raises(KeyboardInterrupt):
            shop.fetch(parts=["val"])
    assert not (shop.folder / RECEIPT).exists()
    if where != "_write_receipt":
        assert not (shop.folder / "val2017").exists()
    served = shop.files["val2017.zip"].served
    assert shop.fetch(parts=["val"]).fetched == ("val",)
    assert shop.files["val2017.zip"].served == served
    assert shop.tree()[-2:] == VAL
    assert not (shop.folder / ".detrkit-fetch").exists()


def test_a_folder_of_other_things_or_of_another_data_set_is_refused(shop: Shop):
    shop.folder.mkdir()
    (shop.folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty and was not made by fetching"):
        shop.fetch()
    assert shop.tree() == ["thesis.tex"]
    (shop.folder / "thesis.tex").unlink()
    shop.fetch(parts=["val"])
    with pytest.raises(DataError, match="holds the data set coco-mini, not other"):
        shop.fetch(shop.entry("other"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 9}', '{"version": 1, "name": 1, "parts": 2}'])
def test_a_damaged_receipt_is_an_error(shop: Shop, content: str):
    shop.folder.mkdir()
    (shop.folder / RECEIPT).write_text(content)
    with pytest.raises(DataError, match="not a receipt of detrkit data fetch"):
        shop.fetch()


def test_two_fetches_into_one_folder_do_not_mix(shop: Shop):
    work = shop.folder / ".detrkit-fetch"
    work.mkdir(parents=True)
    with FileLock(work / "lock"), pytest.raises(UsageError, match="another fetch is at work here"):
        shop.fetch()


def test_pets_keep_the_images_that_have_a_head_box(shop: Shop):
    names = [f"Abyssinian_{number}" for number in range(10)]
    images = {f"images/{name}.jpg": jpeg(20, 10) for name in names}
    xmls = {f"annotations/xmls/{name}.xml": VOC_XML.format(name=name).encode() for name in names}
    more = {"images/beagle_1.jpg": jpeg(20, 10), "images/Abyssinian_1.mat": b""}
    shop.host("images.zip", zipped(images | more))
    shop.host("annotations.zip", zipped({**xmls, "annotations/README": b"Oxford"}))
    archives = shop.archive("images.zip", "images"), shop.archive("annotations.zip", "annotations")
    shop.fetch(shop.one(*archives, voc_folders=("images", "annotations/xmls")))
    assert {path.name for path in shop.folder.iterdir() if path.is_dir()} == {
        "JPEGImages",
        "Annotations",
        "ImageSets",
    }
    assert len(list((shop.folder / "JPEGImages").iterdir())) == 10
    val = (shop.folder / "ImageSets/Main/val.txt").read_text().split()
    assert val == ["Abyssinian_0", "Abyssinian_5"]
    found = {split: read_split_files(files) for split, files in find_splits(shop.folder).items()}
    assert {split: len(index) for split, (index, _) in found.items()} == {"train": 8, "val": 2}
    assert all(report.is_sound for _, report in found.values())
    with pytest.raises(DataError, match="no images in images or no XML files in annotations/xmls"):
        shop.fetch(shop.one(archives[0], voc_folders=("images", "annotations/xmls")), force=True)
