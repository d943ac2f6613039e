"""What the catalogue promises about every data set in it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from detrkit.curation.fetch import CATALOGUE, DatasetEntry

FREE = {"MIT", "CC BY 4.0", "CC BY-SA 4.0", "Public Domain"}
LAYOUTS = {"COCO 2017", "COCO JSON", "Roboflow COCO", "Pascal VOC", "YOLO"}
every_entry = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)


@every_entry
def test_an_entry_says_what_people_must_know(entry: DatasetEntry):
    assert re.fullmatch(r"[a-z0-9-]+", entry.name)
    assert entry.layout in LAYOUTS
    assert all((entry.title, entry.images, entry.classes, entry.licence.name, entry.licence.url))
    assert entry.licence.url.startswith("http")
    assert set(entry.defaults) <= {part.name for part in entry.parts}


@every_entry
def test_every_archive_has_an_address_and_its_hashes_are_hashes(entry: DatasetEntry):
    archives = [archive for part in entry.parts for archive in part.archives]
    assert len({archive.file_name for archive in archives}) == len(archives)
    for archive in archives:
        assert urlsplit(archive.url).scheme in ("http", "https")
        assert re.fullmatch(r"[\w.-]+\.(zip|tar|tar\.gz)", archive.file_name)
        assert archive.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", archive.sha256)
        assert archive.md5 is None or re.fullmatch(r"[0-9a-f]{32}", archive.md5)
        assert bool(archive.sha256 or archive.md5) == bool(archive.hash_source)
        # Without encryption only a hash tells that the file is the published one.
        assert urlsplit(archive.url).scheme == "https" or archive.sha256
        if archive.commit is not None:
            assert archive.url.endswith(archive.commit)


def test_six_small_sets_have_a_free_licence():
    free = [entry for entry in CATALOGUE.values() if entry.licence.name in FREE]
    small = [entry for entry in free if sum(part.size or 0 for part in entry.parts) < 1e9]
    assert len(small) >= 6
    assert {"bccd", "penn-fudan", "coco-2017"} <= set(CATALOGUE)


def test_coco_has_the_parts_that_people_ask_for():
    entry = CATALOGUE["coco-2017"]
    assert [part.name for part in entry.parts] == ["train", "val", "annotations", "panoptic"]
    assert "panoptic" not in entry.defaults
    assert all(archive.sha256 and archive.size for part in entry.parts for archive in part.archives)


def test_the_hashes_of_pascal_voc_are_those_of_torchvision():
    voc = pytest.importorskip("torchvision.datasets.voc").DATASET_YEAR_DICT
    pets = pytest.importorskip("torchvision.datasets").OxfordIIITPet._RESOURCES
    published = {value["url"]: value["md5"] for value in voc.values()} | dict(pets)
    ours = {
        archive.url: archive.md5
        for name in ("voc-2007", "voc-2012", "oxford-pets")
        for part in CATALOGUE[name].parts
        for archive in part.archives
    }
    assert len(ours) == 5
    assert ours.items() <= published.items()
