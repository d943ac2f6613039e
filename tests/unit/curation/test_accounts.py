"""Objects in are objects out and objects accounted for, whatever is planted in the files."""

from __future__ import annotations

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


def identified(planted: PlantedSet, index: CocoIndex, images: Path, *, ids: bool = False) -> list[int]:
    """Numbers of the planted objects that an index has; none is elsewhere, of another class, or there twice.

    Args:
        planted: What was planted.
        index: What was made of it.
        images: Folder of its images.
        ids: Whether the images have the ids that were planted, texts as texts.
    """
    by_box = {item.box: number for number, item in enumerate(planted.objects)}
    found, seen = [], set()
    for row in range(len(index)):
        stem = image_of(images / index.file_name(row))
        if ids and planted.image_ids and stem not in seen:  # of a file that is listed twice, the first is meant
            assert index.written_id(row) == planted.image_ids[stem]
        seen.add(stem)
        rows = index.annotation_rows(row)
        columns = (index.boxes_xyxy[rows], index.labels[rows].tolist(), index.iscrowd[rows].tolist())
        for corners, label, is_crowd in zip(*columns, strict=True):
            whole = np.rint(corners)
            assert np.abs(whole - corners).max() < 1e-3, corners
            left, top, right, bottom = map(int, whole)
            number = by_box[left, top, right - left, bottom - top]
            item = planted.objects[number]
            told = (stem, index.class_map.names[label], is_crowd)
            assert told == (item.image, item.class_name, item.is_crowd), number
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
    sure = sum(item.fate == "read" for item in planted.objects)
    is_ambiguous = planted.traits.get("ids") == "same_image_id"
    try:
        index, ledger, images = read(planted.folder)
        assert not is_ambiguous
    except DataError:
        # refused, and rightly: little of it is sure; nobody can tell two images of one id
        assert is_ambiguous or 2 * sure <= len(planted.objects)
        with pytest.raises(DataError):
            convert_data(planted.folder, out / "converted", to, decimals=True)
        found = []
    else:
        assert ledger.objects_found == planted.counted
        found = identified(planted, index, images, ids=True)
        check_fates(planted.objects, found, ledger)
        follow_conversion(planted, found, ledger, out / "converted", to)
    # a repaired copy, which may have more
    if not sure and not found:
        return
    fixed = fix_data(examine(planted.folder, QUICK), out / "fixed")
    copy, back, images = read(out / "fixed")
    assert back.objects_left_out == {}
    repaired = identified(planted, copy, images, ids=True)
    assert set(found) <= set(repaired)
    (account,) = fixed.ledgers.values()
    assert account.objects_found == planted.counted
    check_fates(planted.objects, repaired, account)
    assert fixed.is_clean == (fixed.after.is_clean and not account.losses())


def follow_conversion(planted: PlantedSet, found: list[int], ledger: Ledger, out: Path, to: str) -> None:
    """Convert a set of which some objects are read: the copy has just them, but for crowd regions in YOLO."""
    kept = [number for number in found if to != "yolo" or not planted.objects[number].is_crowd]
    converted = convert_data(planted.folder, out, to, decimals=True)
    ((part),) = converted.splits.values()
    assert (part.ledger.objects_found, part.objects) == (planted.counted, len(kept))
    if len(kept) == len(found):
        assert list(converted.unfit) == [f"train: {reason}" for reason in ledger.losses()]
    if not kept:
        return
    again, back, images = read(out)
    assert sorted(identified(planted, again, images, ids=to == "coco")) == sorted(kept)
    assert back.objects_left_out == {}
    assert len(again) == part.images


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
