"""Whole data sets, from a server on this machine into their folders."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detrkit.curation.fetch import (
    CATALOGUE,
    Archive,
    DatasetEntry,
    FetchResult,
    Licence,
    Limits,
    Part,
    Policy,
    dataset,
    fetch,
    fetch_dataset,
)
from detrkit.curation.fetch.receipt import RECEIPT
from detrkit.data.formats import find_split, find_splits
from detrkit.data.read import read_split_files
from detrkit.errors import DataError, UsageError
from tests.unit.curation.fetch.server import Hosted, Server

QUICK = Policy(attempts=3, first_wait_s=0.01, timeout_s=5.0, piece_bytes=2_000, save_every_s=0.02)
COMMIT = "d272fb14cdff6e473fafeeeba32aba5f560e9e43"


def jpeg(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (side, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def zipped(members: dict[str, bytes], comment: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
        file.comment = comment.encode()
    return buffer.getvalue()


def instances(split: str) -> bytes:
    names = [f"{number:012}.jpg" for number in (1, 2)]
    return json.dumps(
        {
            "images": [
                {"id": i, "file_name": name, "width": 20 + i, "height": 20 + i} for i, name in enumerate(names)
            ],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 7, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0}
                for i in range(2)
            ],
            "categories": [{"id": 7, "name": f"cat of {split}"}],
        }
    ).encode()


class Shop:
    """A small COCO 2017 on the server, with all its parts, and a folder to fetch it into."""

    def __init__(self, server: Server, folder: Path):
        self.server, self.folder = server, folder
        self.said: list[str] = []
        self.files: dict[str, Hosted] = {}
        for split in ("train", "val"):
            members = {f"{split}2017/{number:012}.jpg": jpeg(19 + number) for number in (1, 2)}
            self.host(f"{split}2017.zip", zipped(members))
        both = {f"annotations/instances_{split}2017.json": instances(split) for split in ("train", "val")}
        self.host("annotations_trainval2017.zip", zipped(both))
        panoptic = {
            "annotations/panoptic_val2017.json": b"{}",
            "annotations/panoptic_val2017.zip": zipped(
                {"panoptic_val2017/1.png": b"png", "__MACOSX/panoptic_val2017/._1.png": b"junk"}
            ),
        }
        self.host("panoptic.zip", zipped(panoptic))

    def host(self, name: str, content: bytes, **how: Any) -> Hosted:
        self.files[name] = self.server.host(name, content, **how)
        return self.files[name]

    def archive(self, name: str, root: str, **more: Any) -> Archive:
        return Archive(
            self.server.address(name), root, **{"sha256": self.files[name].sha256, "hash_source": "us", **more}
        )

    def entry(self, **changes: Any) -> DatasetEntry:
        nested = (("annotations/panoptic_val2017.zip", "annotations"),)
        parts = (
            Part("train", "", (self.archive("train2017.zip", "train2017"),)),
            Part("val", "", (self.archive("val2017.zip", "val2017"),)),
            Part("annotations", "", (self.archive("annotations_trainval2017.zip", "annotations"),)),
            Part("panoptic", "", (self.archive("panoptic.zip", "annotations", nested=nested),)),
        )
        licence = Licence("CC BY 4.0", "https://example.org/terms", "Images are their makers'.")
        entry = DatasetEntry(
            "coco-mini",
            "COCO mini",
            "2 + 2",
            "1",
            licence,
            "https://example.org",
            "COCO 2017",
            parts,
            ("train", "val", "annotations"),
        )
        return dataclasses.replace(entry, **changes)

    def one(self, archive: Archive, **more: Any) -> DatasetEntry:
        return self.entry(parts=(Part("all", "", (archive,), **more),), default_parts=())

    def fetch(self, entry: DatasetEntry | None = None, **more: Any) -> FetchResult:
        given = {"out": self.folder, "policy": QUICK, "say": self.said.append, **more}
        return fetch(entry or self.entry(), **given)

    def tree(self) -> list[str]:
        return sorted(
            path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()
        )

    def heard(self, text: str) -> bool:
        return any(text in line for line in self.said)


@pytest.fixture
def shop(server: Server, tmp_path: Path) -> Shop:
    return Shop(server, tmp_path / "coco")


DEFAULT_TREE = [
    ".detrkit-fetch.json",
    "LICENCE.txt",
    "annotations/instances_train2017.json",
    "annotations/instances_val2017.json",
    "train2017/000000000001.jpg",
    "train2017/000000000002.jpg",
    "val2017/000000000001.jpg",
    "val2017/000000000002.jpg",
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


def test_the_licence_is_said_and_written(shop: Shop):
    shop.fetch()
    said = [number for number, line in enumerate(shop.said) if "licence CC BY 4.0" in line]
    fetching = [number for number, line in enumerate(shop.said) if line.startswith("Fetching")]
    assert said[0] < fetching[0]
    text = (shop.folder / "LICENCE.txt").read_text()
    assert "CC BY 4.0" in text
    assert "https://example.org/terms" in text
    assert "Images are their makers'." in text


def test_the_receipt_tells_addresses_hashes_and_no_time(shop: Shop):
    shop.fetch(parts=["val"])
    content = json.loads((shop.folder / RECEIPT).read_text())
    assert content["name"] == "coco-mini"
    assert content["licence"]["name"] == "CC BY 4.0"
    hosted = shop.files["val2017.zip"]
    assert content["parts"] == {
        "val": {
            "archives": [
                {
                    "url": shop.server.address("val2017.zip"),
                    "size": len(hosted.content),
                    "sha256": hosted.sha256,
                    "md5": None,
                    "check": "SHA-256 published by us",
                    "commit": None,
                }
            ],
            "folders": {"val2017": 2},
            "bytes": len(jpeg(20)) + len(jpeg(21)),
        }
    }
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
    assert shop.tree() == sorted(
        [*DEFAULT_TREE, "annotations/panoptic_val2017.json", "annotations/panoptic_val2017/1.png"]
    )
    assert [len(hosted.requests) > 0 for hosted in shop.files.values()] == [True] * 4


def test_lost_files_are_noticed_and_fetched_again(shop: Shop):
    shop.fetch()
    (shop.folder / "val2017/000000000002.jpg").unlink()
    result = shop.fetch()
    assert result.fetched == ("val",)
    assert shop.heard("val is no longer complete (val2017 has 1 of 2 files)")
    assert shop.tree() == DEFAULT_TREE


def test_archives_are_kept_if_wanted_and_used_again(shop: Shop):
    shop.fetch(parts=["val"], keep_archives=True)
    kept = shop.folder / "archives/val2017.zip"
    assert kept.read_bytes() == shop.files["val2017.zip"].content
    (shop.folder / "val2017/000000000002.jpg").unlink()
    before = shop.server.requests
    assert shop.fetch(parts=["val"]).fetched == ("val",)
    assert shop.server.requests == before
    assert kept.exists()


def test_without_a_network_an_archive_can_be_brought_by_hand(shop: Shop):
    (shop.folder / "archives").mkdir(parents=True)
    (shop.folder / "archives/val2017.zip").write_bytes(shop.files["val2017.zip"].content)
    assert shop.fetch(parts=["val"]).fetched == ("val",)
    assert shop.server.requests == 0
    assert (shop.folder / "val2017/000000000001.jpg").exists()


def test_a_damaged_archive_of_an_earlier_run_is_fetched_anew(shop: Shop):
    work = shop.folder / ".detrkit-fetch"
    work.mkdir(parents=True)
    (work / "val2017.zip").write_bytes(b"damaged since")
    assert shop.fetch(parts=["val"]).fetched == ("val",)
    assert shop.tree() == [*DEFAULT_TREE[:2], *DEFAULT_TREE[-2:]]


def test_a_wrong_archive_brought_by_hand_is_not_used(shop: Shop):
    (shop.folder / "archives").mkdir(parents=True)
    (shop.folder / "archives/val2017.zip").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"its SHA-256 is .*; remove it to have it fetched"):
        shop.fetch(parts=["val"])


def test_a_wrong_hash_leaves_no_data_behind(shop: Shop):
    wrong = shop.one(shop.archive("val2017.zip", "val2017", sha256="0" * 64))
    with pytest.raises(DataError, match="its SHA-256 is"):
        shop.fetch(wrong)
    assert shop.tree() == [".detrkit-fetch/lock", "LICENCE.txt"]
    assert shop.fetch(shop.one(shop.archive("val2017.zip", "val2017"))).fetched == ("all",)


def test_a_hostile_archive_leaves_no_data_behind(shop: Shop, tmp_path: Path):
    shop.host("evil.zip", zipped({"set/good.jpg": b"good", "set/../../../evil.jpg": b"evil"}))
    with pytest.raises(DataError, match="leads outside"):
        shop.fetch(shop.one(shop.archive("evil.zip", "set")))
    assert not list(tmp_path.rglob("evil.jpg"))
    assert not list(tmp_path.rglob("good.jpg"))


def test_a_hostile_archive_inside_an_archive_leaves_no_data_behind(shop: Shop, tmp_path: Path):
    inner = zipped({"../../../../evil.png": b"evil"})
    shop.host("outer.zip", zipped({"annotations/a.json": b"{}", "annotations/in.zip": inner}))
    nested = (("annotations/in.zip", "annotations"),)
    with pytest.raises(DataError, match=r"in\.zip is not unpacked: .*leads outside"):
        shop.fetch(shop.one(shop.archive("outer.zip", "annotations", nested=nested)))
    assert not list(tmp_path.rglob("evil.png"))
    assert not (shop.folder / "annotations").exists()


def test_limits_are_kept(shop: Shop):
    with pytest.raises(DataError, match="more than 1 files"):
        shop.fetch(limits=Limits(files=1))
    assert not (shop.folder / "train2017").exists()


def test_the_folders_that_wrap_a_data_set_are_dropped(shop: Shop):
    members = {f"repository-{COMMIT}/data/{name}": b"x" for name in ("images/a.jpg", "labels/a.txt")}
    shop.host("repository.zip", zipped(members))
    shop.fetch(shop.one(shop.archive("repository.zip", "images")))
    assert (shop.folder / "images/a.jpg").exists()
    assert (shop.folder / "labels/a.txt").exists()


def test_an_archive_of_something_else_is_refused(shop: Shop):
    with pytest.raises(DataError, match=r"val2017\.zip does not hold labels, as it should"):
        shop.fetch(shop.one(shop.archive("val2017.zip", "labels")))
    assert not (shop.folder / "val2017").exists()


def test_another_commit_than_the_pinned_one_is_refused(shop: Shop):
    shop.host("repository.zip", zipped({"r/images/a.jpg": b"x"}, comment="0" * 40))
    pinned = shop.archive("repository.zip", "images", commit=COMMIT, sha256=None)
    with pytest.raises(DataError, match=f"holds commit {'0' * 40}, expected {COMMIT}"):
        shop.fetch(shop.one(pinned))
    shop.host("repository.zip", zipped({"r/images/a.jpg": b"x"}, comment=COMMIT), etag='"v2"')
    result = shop.fetch(shop.one(pinned), force=True)
    assert result.present["all"].archives[0].commit == COMMIT


def test_without_a_published_hash_the_hash_is_noted_and_a_change_is_noticed(shop: Shop):
    unchecked = shop.one(shop.archive("val2017.zip", "val2017", sha256=None, hash_source=""))
    first = shop.files["val2017.zip"].sha256
    result = shop.fetch(unchecked)
    assert result.present["all"].archives[0].sha256 == first
    assert shop.heard(f"SHA-256 {first}, no published hash; noted in")
    hosted = shop.host("val2017.zip", zipped({"val2017/000000000001.jpg": jpeg(9)}), etag='"v2"')
    shop.fetch(unchecked, force=True)
    assert shop.heard("WARNING:")
    assert shop.heard(f"its SHA-256 is {hosted.sha256}, and was {first} when it was fetched before")


def test_what_is_arranged_is_arranged_before_it_gets_its_place(shop: Shop):
    def turn(tree: Path) -> None:
        assert not (shop.folder / "val2017").exists()
        (tree / "val2017").rename(tree / "images")

    shop.fetch(shop.one(shop.archive("val2017.zip", "val2017"), arrange=turn))
    assert (shop.folder / "images/000000000001.jpg").exists()
    assert not (shop.folder / "val2017").exists()


@pytest.mark.parametrize("where", ["unpack", "_merge", "write_receipt", "_inventory"])
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
    if where != "write_receipt":
        assert not (shop.folder / "val2017").exists()
    served = shop.files["val2017.zip"].served
    assert shop.fetch(parts=["val"]).fetched == ("val",)
    assert shop.files["val2017.zip"].served == served
    assert [name for name in shop.tree() if name.startswith("val2017")] == DEFAULT_TREE[-2:]
    assert not (shop.folder / ".detrkit-fetch").exists()


def test_a_full_disk_while_unpacking_leaves_nothing_under_a_final_name(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    def full(*_what: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("detrkit.curation.fetch.extract._write", full)
        with pytest.raises(DataError, match=r"no space left while writing .*free some space and run the same"):
            shop.fetch(parts=["val"])
    assert shop.tree() == [".detrkit-fetch/lock", ".detrkit-fetch/val2017.zip", "LICENCE.txt"]
    assert shop.fetch(parts=["val"]).fetched == ("val",)


def test_a_disk_that_cannot_hold_the_data_set_is_said_first(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": 3_000_000})
    monkeypatch.setattr("detrkit.curation.fetch.pieces.shutil.disk_usage", lambda _path: usage)
    archive = shop.archive("val2017.zip", "val2017", about=2_000_000)
    with pytest.raises(DataError, match=r"4\.0 MB are needed and 3\.0 MB are free"):
        shop.fetch(shop.one(archive))
    assert shop.server.requests == 0


def test_a_folder_with_other_things_in_it_is_refused(shop: Shop):
    shop.folder.mkdir()
    (shop.folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty and was not made by fetching"):
        shop.fetch()
    assert shop.tree() == ["thesis.tex"]


def test_the_folder_of_another_data_set_is_refused(shop: Shop):
    shop.fetch(parts=["val"])
    with pytest.raises(DataError, match="holds the data set coco-mini, not other"):
        shop.fetch(shop.entry(name="other"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 9}', '{"version": 1, "name": 1, "parts": 2}'])
def test_a_damaged_receipt_is_an_error(shop: Shop, content: str):
    shop.folder.mkdir()
    (shop.folder / RECEIPT).write_text(content)
    with pytest.raises(DataError, match="not a receipt of detrkit data fetch"):
        shop.fetch()


def test_two_fetches_into_one_folder_do_not_mix(shop: Shop):
    work = shop.folder / ".detrkit-fetch"
    work.mkdir(parents=True)
    with (work / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another fetch is at work here"):
            shop.fetch()


def test_an_unknown_part_or_data_set_is_a_usage_error(shop: Shop, tmp_path: Path):
    with pytest.raises(UsageError, match="has no part 'test'; it has train, val, annotations, panoptic"):
        shop.fetch(parts=["val", "test"])
    with pytest.raises(UsageError, match="there is no data set 'imagenet' to fetch; known are coco-2017"):
        fetch_dataset("imagenet", tmp_path / "new")
    with pytest.raises(UsageError, match="17 connections at once, expected 1 to 16"):
        shop.fetch(connections=17)
    assert not shop.folder.exists()
    assert not (tmp_path / "new").exists()


def test_a_data_set_is_fetched_by_its_name(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dataset, "CATALOGUE", {**CATALOGUE, "coco-mini": shop.entry()})
    result = fetch_dataset("coco-mini", shop.folder, parts=["val"], say=shop.said.append)
    assert result.folder == shop.folder
    assert result.present["val"].files == 2


def test_the_real_bccd_comes_as_github_packs_it(shop: Shop, shared_data: Path):
    entry = CATALOGUE["bccd"]
    part, commit = entry.parts[0], entry.parts[0].archives[0].commit
    assert commit is not None
    source = shared_data / "bccd_voc"
    members = {
        f"BCCD_Dataset-{commit}/BCCD/{path.relative_to(source).as_posix()}": path.read_bytes()
        for folder in ("Annotations", "ImageSets", "JPEGImages")
        for path in sorted((source / folder).rglob("*"))
        if path.is_file()
    }
    members |= {f"BCCD_Dataset-{commit}/LICENSE": b"MIT", f"BCCD_Dataset-{commit}/plot.py": b""}
    shop.host("bccd.zip", zipped(members, comment=commit), ranges=False, length=False, etag='W/"x"', modified=None)
    archive = dataclasses.replace(part.archives[0], url=shop.server.address("bccd.zip"))
    shop.fetch(dataclasses.replace(entry, parts=(dataclasses.replace(part, archives=(archive,)),)))
    sizes = {split: len(read_split_files(files)[0]) for split, files in find_splits(shop.folder).items()}
    assert sizes == {"train": 205, "val": 87, "test": 72}
    assert {path.name for path in shop.folder.iterdir() if path.is_dir()} == {
        "Annotations",
        "ImageSets",
        "JPEGImages",
    }
