"""Objects in are objects out and objects accounted for, whatever is planted in the files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from detrkit.curation.check import CheckOptions, examine
from detrkit.curation.convert import convert_data
from detrkit.curation.fix import fix_data
from detrkit.data.faults import Ledger
from detrkit.data.formats import find_splits
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_split_files
from detrkit.errors import DataError
from tests.support.planted_sets import FORMATS, PlantedObject, PlantedSet, image_of, plant

QUICK = CheckOptions(duplicates=False, workers=1)
TARGETS = ("coco", "yolo", "voc")


def read(folder: Path) -> tuple[CocoIndex, Ledger, Path]:
    """The only split of a set, as training reads it."""
    ((_, files),) = find_splits(folder).items()
    index, report = read_split_files(files)
    return index, report.ledger, files.images


def identified(planted: PlantedSet, index: CocoIndex, images: Path) -> list[int]:
    """Numbers of the planted objects that an index has; none is elsewhere, of another class, or there twice."""
    by_box = {item.box: number for number, item in enumerate(planted.objects)}
    found = []
    for row in range(len(index)):
        stem = image_of(images / index.file_name(row))
        rows = index.annotation_rows(row)
        for corners, label in zip(index.boxes_xyxy[rows], index.labels[rows].tolist(), strict=True):
            whole = np.rint(corners)
            assert np.abs(whole - corners).max() < 1e-3, corners
            left, top, right, bottom = map(int, whole)
            number = by_box[left, top, right - left, bottom - top]
            item = planted.objects[number]
            assert (stem, index.class_map.names[label]) == (item.image, item.class_name), number
            found.append(number)
    assert len(found) == len(set(found))
    return found


def check_fates(objects: Iterable[PlantedObject], found: Iterable[int], expected: Ledger) -> None:
    """Every sound object is there, none that cannot be read is; the account has the others."""
    kept = set(found)
    for number, item in enumerate(objects):
        assert item.fate == "either" or (item.fate == "read") == (number in kept), (number, item)
    assert len(kept) == expected.objects_read


def account_for(planted: PlantedSet, out: Path, to: str) -> None:
    """Follow all objects of a set through reading, conversion and repair."""
    # what training reads
    if all(item.fate != "read" for item in planted.objects):
        with contextlib.suppress(DataError):
            read(planted.folder)
        return
    index, ledger, images = read(planted.folder)
    assert ledger.objects_found == planted.counted
    found = identified(planted, index, images)
    check_fates(planted.objects, found, ledger)
    # a conversion has just that
    converted = convert_data(planted.folder, out / "converted", to, decimals=True)
    ((part),) = converted.splits.values()
    again, back, images = read(out / "converted")
    assert sorted(identified(planted, again, images)) == sorted(found)
    assert (part.ledger.objects_found, part.objects) == (planted.counted, len(found))
    assert back.objects_left_out == {}
    assert len(again) == part.images
    assert list(converted.unfit) == [f"train: {reason}" for reason in ledger.losses()]
    # a repaired copy, which may have more
    fixed = fix_data(examine(planted.folder, QUICK), out / "fixed")
    copy, back, images = read(out / "fixed")
    assert back.objects_left_out == {}
    assert set(found) <= set(identified(planted, copy, images))
    (account,) = fixed.ledgers.values()
    assert account.objects_found == planted.counted
    check_fates(planted.objects, identified(planted, copy, images), account)
    assert fixed.is_clean == (fixed.after.is_clean and not account.losses())


@pytest.mark.parametrize("form", FORMATS)
def test_all_objects_are_accounted_for(form: str, tmp_path: Path) -> None:
    for seed in range(4):
        account_for(plant(tmp_path / f"{seed}", form, seed), tmp_path / f"{seed}-out", TARGETS[seed % 3])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tens", range(5))
def test_all_objects_of_many_sets_are_accounted_for(form: str, tens: int, tmp_path: Path) -> None:
    for seed in range(4 + 20 * tens, 24 + 20 * tens):
        rate = (0.1, 0.3, 0.6)[seed // 3 % 3]
        account_for(plant(tmp_path / f"{seed}", form, seed, rate), tmp_path / f"{seed}-out", TARGETS[seed % 3])
