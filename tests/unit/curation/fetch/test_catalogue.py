"""What the catalogue promises about every data set in it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from detrkit.curation.fetch import CATALOGUE
from detrkit.curation.fetch.catalogue import REMOVED

LAYOUTS = {"COCO 2017", "COCO JSON", "Roboflow COCO", "Pascal VOC", "YOLO"}


def test_every_entry_says_what_people_must_know():
    for name, entry in CATALOGUE.items():
        assert name == entry.name
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert entry.layout in LAYOUTS
        assert all((entry.title, entry.images, entry.classes, entry.licence.name, entry.defaults))
        assert entry.licence.url.startswith("http")
    assert not set(REMOVED) & set(CATALOGUE)


def test_every_archive_has_a_published_hash_or_a_commit():
    for entry in CATALOGUE.values():
        archives = [archive for part in entry.parts.values() for archive in part.archives]
        assert len({archive.file_name for archive in archives}) == len(archives)
        for archive in archives:
            assert re.fullmatch(r"[\w.-]+\.(zip|tar|tar\.gz)", archive.file_name)
            if archive.commit:
                assert re.fullmatch(r"https://codeload\.github\.com/.*/[0-9a-f]{40}", archive.url)
                assert archive.url.endswith(archive.commit)
                continue
            # Without encryption only a hash tells that the file is the published one.
            assert urlsplit(archive.url).scheme in ("http", "https")
            assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256)
            assert re.fullmatch(r"[0-9a-f]{32}|", archive.md5)
            assert archive.size


def test_the_hashes_of_pascal_voc_and_pets_are_those_of_torchvision():
    voc = pytest.importorskip("torchvision.datasets.voc").DATASET_YEAR_DICT
    pets = pytest.importorskip("torchvision.datasets").OxfordIIITPet._RESOURCES
    published = {value["url"]: value["md5"] for value in voc.values()} | dict(pets)
    ours = {
        archive.url: archive.md5
        for name in ("voc-2007", "voc-2012", "oxford-pets")
        for part in CATALOGUE[name].parts.values()
        for archive in part.archives
    }
    assert len(ours) == 5
    assert ours.items() <= published.items()
