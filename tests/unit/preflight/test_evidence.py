from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from detrkit.curation.synthetic import write_synthetic
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_coco
from detrkit.preflight import data_questions
from detrkit.preflight.data_questions import check_boxes_and_labels, check_offset
from detrkit.preflight.evidence import (
    CHANCE,
    Patches,
    box_evidence,
    collect_patches,
    label_evidence,
    offset_evidence,
)
from detrkit.preflight.report import CheckResult, Outcome

SETS = {
    "coco": ("coco_mini/annotations/instances_train2017.json", "coco_mini/train2017"),
    "blood cells": ("bccd_voc/coco/instances_val.json", "bccd_voc/JPEGImages"),
    "chess": ("chess_roboflow_coco/train/_annotations.coco.json", "chess_roboflow_coco/train"),
    "cones": ("cones_yolo/coco/instances_test.json", "cones_yolo/test/images"),
}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def made_up(count: int = 200, classes: int = 4, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that tell the class, labels, and five objects an image."""
    random = generator()
    labels = random.integers(0, classes, count)
    features = np.eye(classes)[labels] @ random.normal(size=(classes, 20)) + noise * random.normal(
        size=(count, 20)
    )
    return features, labels, np.arange(count) // 5


def test_shuffling_within_images_is_seen_by_its_own_comparison():
    features, labels, images = made_up(count=500)
    scene = images % 4  # every image has mostly objects of one class, and looks like it
    labels = np.where(generator(1).random(500) < 0.7, scene[images], labels)
    features = features + 2 * np.eye(20)[scene]
    features[:, :4] += 2 * np.eye(4)[labels]
    mixed = labels.copy()
    for image in np.unique(images):
        rows = np.flatnonzero(images == image)
        mixed[rows] = labels[generator(int(image)).permutation(rows)]
    assert label_evidence(features, labels, images, within=True) > 5
    assert label_evidence(features, mixed, images) > 5  # whole images still tell their classes
    assert abs(label_evidence(features, mixed, images, within=True)) < CHANCE


@pytest.mark.parametrize("same", [np.zeros(50, dtype=np.int64), np.arange(50)])
def test_one_class_or_one_image_or_features_without_difference_are_no_evidence(same: np.ndarray):
    features, labels, images = made_up(50)
    assert label_evidence(features, same * 0, images) == 0
    assert label_evidence(features, labels, images * 0) == 0
    assert label_evidence(np.ones((50, 8)), labels, images) == 0
    assert box_evidence(np.ones((2, 50, 8)), images) == 0


@pytest.mark.parametrize("name", SETS)
def test_real_sets_are_sound_and_shuffled_ones_are_not(name: str, shared_data: Path):
    annotations, images = SETS[name]
    index, _ = read_coco(shared_data / annotations, shared_data / images)
    patches = collect_patches(index, shared_data / images, most_objects=500, most_images=80)
    assert not patches.unreadable
    assert patches.blank == 0
    assert box_evidence(patches.pairs, patches.pair_rows) > 10
    assert label_evidence(patches.objects, patches.labels, patches.image_rows) > 5
    shuffled = generator().permutation(patches.labels)
    assert label_evidence(patches.objects, shuffled, patches.image_rows) < CHANCE
    swapped = patches.pairs.copy()
    turned = generator(1).random(swapped.shape[1]) < 0.5
    swapped[:, turned] = swapped[::-1, turned]
    assert abs(box_evidence(swapped, patches.pair_rows)) < CHANCE + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chess", "blood cells"])
def test_boxes_written_by_their_centre_fit_better_where_they_belong(name: str, shared_data: Path):
    annotations, images = SETS[name]
    index, _ = read_coco(shared_data / annotations, shared_data / images)

    def check(boxes: CocoIndex) -> list[CheckResult]:
        return check_offset("train", lambda seed: offset_evidence(boxes, shared_data / images, seed=seed))

    assert check(index) == []
    sizes = index.boxes_xyxy[:, 2:] - index.boxes_xyxy[:, :2]
    for shift in (0.5, -0.5):
        wrong = dataclasses.replace(index, boxes_xyxy=index.boxes_xyxy + np.tile(shift * sizes, 2))
        (fault,) = check(wrong)
        assert fault.outcome is Outcome.FAULT
        assert fault.name == "boxes_off_by_half"
        assert fault.figures["shift"] == -shift


def test_few_objects_tell_nothing_of_an_offset(tmp_path: Path):
    write_synthetic(tmp_path, train_images=8, val_images=2, size=64)
    index, _ = read_coco(tmp_path / "annotations/instances_train2017.json", tmp_path / "train2017")
    assert check_offset("train", lambda seed: offset_evidence(index, tmp_path / "train2017", seed=seed)) == []


@pytest.mark.parametrize(
    ("deviations", "count", "outcome"),
    [
        ([10], 120, Outcome.OK),
        ([2.5, 6, 5], 120, Outcome.OK),
        ([2.9, 2.0, 2.6], 120, Outcome.WARNING),
        ([0.4, -1, 2], 80, Outcome.WARNING),  # so few may be sound and show nothing
        ([0.4, -1, 2], 120, Outcome.FAULT),
    ],
)
def test_one_draw_is_no_fault(
    deviations: list[float], count: int, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
):
    drawn = []

    def draw(number: int) -> Patches:
        drawn.append(number)
        pairs = np.full((2, count, 4), deviations[number])
        rows = np.arange(count) // 4
        return Patches(np.zeros((count, 4)), rows * 0, np.zeros((count, 5)), rows, pairs, rows, 20, (), 0)

    monkeypatch.setattr(data_questions, "box_evidence", lambda pairs, _rows: float(pairs.max()))
    result = check_boxes_and_labels("train", draw)[0]
    assert result.outcome is outcome
    assert set(drawn) == set(range(len(deviations)))


@pytest.mark.parametrize(
    ("counts", "outcome"),
    [
        ([40, 40, 40], Outcome.FAULT),
        ([30, 30], Outcome.WARNING),
        ([4] * 40, Outcome.WARNING),  # many classes, and little of each to learn from
        ([300, 5, 5], Outcome.WARNING),  # nearly all of one class
    ],
)
def test_labels_that_no_sample_of_the_size_could_tell_are_no_fault(counts: list[int], outcome: Outcome):
    labels = generator(0).permutation(np.repeat(np.arange(len(counts)), counts))

    def draw(number: int) -> Patches:
        random, size = generator(number + 1), len(labels)
        pairs = random.normal(size=(2, size, 8)) + np.array([0.0, 3.0])[:, None, None]
        rows = np.arange(size) // 4
        return Patches(
            random.normal(size=(size, 8)), labels, random.normal(size=(size, 5)), rows, pairs, rows, 9, (), 0
        )

    result = check_boxes_and_labels("train", draw)[-1]
    assert (result.name, result.outcome) == ("labels_shuffled", outcome)


@pytest.mark.parametrize("shifts", [[-0.5, -0.5, -0.5], [-0.5, 0.0, -0.5], [-0.5, 0.0, 0.5], [0.0]])
def test_an_offset_is_a_fault_only_where_all_draws_agree(shifts: list[float]):
    def draw(number: int) -> dict[float, tuple[float, float]]:
        shift = shifts[number]
        found = dict.fromkeys((0.0, -0.5, 0.5), (10.0, 10.0))
        return {**found, shift: (20.0, 20.0), -shift: (2.0, 2.0)} if shift else found

    outcomes = [result.outcome for result in check_offset("train", draw)]
    assert outcomes == {3: [Outcome.FAULT], 2: [Outcome.WARNING]}.get(shifts.count(-0.5), [])
