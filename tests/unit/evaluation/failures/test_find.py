"""Everything together: pictures, pixels, and cases with little in them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from detrkit.errors import UsageError
from detrkit.evaluation.error_types import classify_errors
from detrkit.evaluation.failures import KINDS, failure_sections, find_failures, write_failures
from detrkit.visual.page import write_page

from .cases import (
    Found,
    failures_of,
    found_of,
    generated_truth,
    matched,
    simulated_detector,
    truth_of,
    with_label_errors,
)

EMPTY = {
    "no images": (truth_of(images=0), found_of()),
    "no objects": (truth_of(), found_of((0, 0, 0.9, (1.0, 1.0, 9.0, 9.0)))),
    "no detections": (truth_of((0, 0, (1.0, 1.0, 9.0, 9.0))), found_of()),
    "neither": (truth_of(), found_of()),
    "only a crowd": (truth_of((0, 0, (1.0, 1.0, 9.0, 9.0)), crowd=(0,)), found_of()),
    "no failure": (truth_of((0, 0, (1.0, 1.0, 9.0, 9.0))), found_of((0, 0, 0.9, (1.0, 1.0, 9.0, 9.0)))),
}


def gray(row: int) -> np.ndarray:
    return np.full((480, 640, 3), 10 * (row % 20) + 30, np.uint8)


@pytest.mark.parametrize("case", EMPTY)
@pytest.mark.parametrize("read_image", [None, gray, lambda row: None], ids=["unasked", "read", "unreadable"])
def test_cases_with_little_in_them_give_a_page_and_files(case, read_image, tmp_path):
    failures = failures_of(*EMPTY[case], read_image=read_image)
    write_failures(failures, tmp_path)
    page = write_page(tmp_path / "page.html", "title", "", failure_sections(failures)).read_text(encoding="utf-8")
    assert "Labels to check" in page
    assert failures.causes == ()


def test_pictures_are_the_worst_of_each_kind_with_few_of_one_image():
    truth = with_label_errors(generated_truth(0, images=60)).truth
    found = simulated_detector(generated_truth(0, images=60))
    failures = failures_of(truth, found, read_image=gray, pictures=5, issue_pictures=4, pixel_images=10)
    numbers = [number for number, _ in failures.pictures]
    assert numbers == sorted(numbers)
    kinds = failures.table.kinds[numbers]
    for code, kind in enumerate(KINDS):
        mine = [number for number, entry in zip(numbers, kinds, strict=True) if entry == code]
        assert len(mine) == min(5, failures.counts[kind])
        every = np.flatnonzero(failures.table.kinds == code)
        assert mine[:1] == every[:1].tolist()
        images = failures.table.image_rows[mine]
        assert len(mine) == 0 or np.bincount(images).max() <= 3
    reasons = [failures.label_issues[number].reason for number, _ in failures.issue_pictures]
    assert max(map(reasons.count, set(reasons))) == 4
    assert failures.pixel_images == 10
    assert failures.unreadable == 0
    for _, picture in (*failures.pictures, *failures.issue_pictures):
        assert max(Image.open(io.BytesIO(picture.jpeg)).size) <= 240


def test_one_bad_image_does_not_fill_the_gallery():
    clutter = [(0, 0, 0.95, (40.0 * number, 10.0, 30.0, 30.0)) for number in range(12)]
    found = found_of(*clutter, (1, 0, 0.6, (40.0, 10.0, 30.0, 30.0)))
    failures = failures_of(truth_of(), found, read_image=gray)
    assert failures.table.image_rows[[number for number, _ in failures.pictures]].tolist() == [0, 0, 0, 1]


def test_images_that_cannot_be_read_leave_entries_without_pictures():
    truth = truth_of((0, 0, (10.0, 10.0, 60.0, 60.0)), (1, 0, (10.0, 10.0, 60.0, 60.0)))
    failures = failures_of(truth, found_of(), read_image=lambda row: gray(row) if row else None)
    assert failures.unreadable == 1
    assert sorted(bool(picture.jpeg) for _, picture in failures.pictures) == [False, True]
    page = "".join(block.html() for section in failure_sections(failures) for block in section.blocks)
    assert "1 images could not be read" in page


def test_dark_objects_that_are_missed_show_in_the_causes():
    truth = generated_truth(3, images=300)
    rng = np.random.default_rng(1)
    dark = rng.random(300) < 0.3
    rows = np.flatnonzero(rng.random(len(truth.class_ids)) < np.where(dark[truth.image_rows], 0.5, 0.97))
    found = Found(truth.image_rows[rows], truth.class_ids[rows], np.full(len(rows), 0.9), truth.boxes_xywh[rows])

    def read_image(row: int) -> np.ndarray:
        # contrast and sharpness are the same at any brightness
        noise = np.random.default_rng(row).integers(0, 30, (480, 640, 1), dtype=np.uint8)
        return np.repeat(noise + np.uint8(20 if dark[row] else 150), 3, axis=2)

    failures = failures_of(truth, found, read_image=read_image)
    (cause,) = (cause for cause in failures.causes if cause.explained_by is None)
    assert (cause.name, cause.worst <= 1, cause.sampled) == ("brightness", True, True)
    assert failures.pixel_images == 300
    sample = failures_of(truth, found, read_image=read_image, pixel_images=120, pictures=0, issue_pictures=0)
    assert sample.pixel_images == 120
    assert sum(entry.count for entry in sample.causes[0].bins) < 0.6 * len(truth.class_ids)


def test_large_images_are_sampled_less(monkeypatch):
    monkeypatch.setattr("detrkit.evaluation.failures.find._MOST_PIXELS", 480 * 640 * 7)
    truth = generated_truth(3, images=30)
    failures = failures_of(truth, simulated_detector(truth), read_image=gray, pictures=0, issue_pictures=0)
    assert 6 <= failures.pixel_images <= 7


def test_the_same_seed_gives_the_same_failures():
    truth = generated_truth(4, images=40)
    found = simulated_detector(truth)
    first, again = (failures_of(truth, found, read_image=gray, pixel_images=9) for _ in range(2))
    assert first.pictures == again.pictures
    assert first.causes == again.causes
    assert first.images == again.images


def test_names_must_be_one_for_each_image():
    matches = matched(truth_of(), found_of())
    with pytest.raises(UsageError, match="2 file names, expected 3"):
        find_failures(matches, classify_errors(matches), ["a", "b"], score=0.5)
