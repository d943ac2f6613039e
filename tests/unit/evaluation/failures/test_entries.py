"""What counts as a failure at a threshold, and which comes first."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from detrkit.evaluation.failures.entries import KINDS

from .cases import failures_of, found_of, generated_truth, simulated_detector, truth_of

CAT, DOG, BIRD = range(3)
BOX = (100.0, 100.0, 100.0, 100.0)
OFF = (150.0, 100.0, 100.0, 100.0)  # IoU 1/3 with BOX
FAR = (400.0, 300.0, 60.0, 60.0)


@pytest.mark.parametrize(
    ("detection", "kind", "other", "missed"),
    [
        ((0, DOG, 0.9, BOX), "classification", CAT, 0),
        ((0, CAT, 0.9, OFF), "localization", CAT, 0),
        ((0, DOG, 0.9, OFF), "both", CAT, 1),
        ((0, CAT, 0.9, FAR), "background", None, 1),
    ],
)
def test_a_false_positive_is_listed_with_what_explains_it(detection, kind, other, missed):
    failures = failures_of(truth_of((0, CAT, BOX)), found_of(detection))
    assert failures.counts == {**dict.fromkeys(KINDS, 0), kind: 1, "missed": missed}
    (failure,) = failures.worst(5, kind)
    assert failure.class_id == detection[1]
    assert failure.other_class_id == other
    assert failure.score == 0.9
    assert failure.severity == pytest.approx(0.81)
    assert failure.image_id == 7
    assert failure.file_name == "000007.jpg"
    np.testing.assert_array_equal(failure.found_xywh, detection[3])


def test_a_duplicate_weighs_half():
    failures = failures_of(truth_of((0, CAT, BOX)), found_of((0, CAT, 0.9, BOX), (0, CAT, 0.8, BOX)))
    assert failures.counts == {**dict.fromkeys(KINDS, 0), "duplicate": 1}
    (failure,) = failures.worst(5)
    assert failure.severity == pytest.approx(0.5 * 0.64)
    assert failure.iou == 1.0


def test_detections_under_the_threshold_are_neither_wrong_nor_right():
    truth = truth_of((0, CAT, BOX))
    failures = failures_of(truth, found_of((0, CAT, 0.4, BOX), (0, DOG, 0.3, FAR)), score=0.5)
    assert failures.counts == {**dict.fromkeys(KINDS, 0), "missed": 1}
    (failure,) = failures.worst(5)
    assert failure.class_id == failure.other_class_id == CAT
    assert failure.score == 0.4
    assert failures.describe(failure) == "cat, found with score 0.40 only, IoU 1.00"
    at_it = failures_of(truth, found_of((0, CAT, 0.5, BOX), (0, DOG, 0.5, FAR)), score=0.5)
    assert at_it.counts == {**dict.fromkeys(KINDS, 0), "background": 1}


def test_a_missed_object_names_the_detection_that_finds_it_low_before_one_that_overlaps_more():
    found = found_of((0, CAT, 0.3, (105.0, 100.0, 100.0, 100.0)), (0, DOG, 0.2, BOX))
    (failure,) = failures_of(truth_of((0, CAT, BOX)), found).worst(5)
    assert (failure.score, failure.other_class_id) == (0.3, CAT)


def test_a_missed_object_without_anything_near_says_so():
    failures = failures_of(truth_of((0, BIRD, BOX)), found_of())
    (failure,) = failures.worst(5)
    assert failure.score is failure.iou is failure.other_class_id is failure.found_xywh is None
    assert failures.describe(failure) == "bird, nothing is near"


def test_large_missed_objects_and_confident_errors_come_before_clutter():
    large, small = (0.0, 0.0, 600.0, 450.0), (500.0, 10.0, 12.0, 12.0)
    truth = truth_of((0, CAT, large), (1, CAT, small))
    clutter = [(2, DOG, 0.3 + 0.01 * number, (40.0 * number, 100.0, 30.0, 30.0)) for number in range(8)]
    failures = failures_of(truth, found_of((2, BIRD, 0.97, (10.0, 300.0, 80.0, 80.0)), *clutter), score=0.25)
    order = [(failure.kind, failure.image_row) for failure in failures.worst(3)]
    assert order == [("missed", 0), ("background", 2), ("missed", 1)]
    assert [failure.score for failure in failures.worst(9, "background")] == sorted(
        [0.97, *(0.3 + 0.01 * number for number in range(8))], reverse=True
    )


def test_scores_of_any_kind_give_the_same_order():
    truth = generated_truth(8, images=60)
    found = simulated_detector(truth)
    logits = np.log(found.scores / (1 - found.scores))
    plain = failures_of(truth, found, score=0.5)
    bent = failures_of(truth, dataclasses.replace(found, scores=logits), score=0.0)
    false = plain.table.kinds != KINDS.index("duplicate")
    false &= plain.table.kinds != KINDS.index("missed")
    bent_false = np.isin(bent.table.kinds, np.unique(plain.table.kinds[false]))
    assert plain.table.detections[false].tolist() == bent.table.detections[bent_false].tolist()
    assert 0 < bent.table.severity.min() <= bent.table.severity.max() <= 1
    assert all(0 <= issue.rank <= 1 for issue in bent.label_issues)
    assert {issue.reason for issue in bent.label_issues} >= {"missing label"}


def test_what_lies_in_a_crowd_region_is_no_failure():
    truth = truth_of((0, CAT, (0.0, 0.0, 600.0, 400.0)), crowd=(0,))
    failures = failures_of(truth, found_of((0, CAT, 0.9, BOX)))
    assert len(failures.table) == 0
    assert failures.images[0].objects == 0


def test_images_are_listed_worst_first_with_all_their_counts():
    truth = truth_of((0, CAT, BOX), (1, CAT, BOX), (1, DOG, FAR))
    found = found_of(
        (0, CAT, 0.9, BOX),
        (1, CAT, 0.9, (100.0, 100.0, 100.0, 80.0)),
        (1, CAT, 0.7, BOX),
        (1, BIRD, 0.8, (300.0, 50.0, 40.0, 40.0)),
    )
    failures = failures_of(truth, found)
    first, second, third = failures.images
    assert (first.image_id, second.image_id, third.image_id) == (10, 7, 13)
    assert (first.objects, first.right) == (2, 1)
    assert dict(zip(KINDS, first.wrong, strict=True)) == {
        **dict.fromkeys(KINDS, 0),
        "duplicate": 1,
        "background": 1,
        "missed": 1,
    }
    assert first.f1 == pytest.approx(2 * 1 / (3 + 2))
    assert first.mean_iou == pytest.approx(0.8)
    assert first.severity == pytest.approx(sum(failure.severity for failure in failures.worst(9)))
    assert (second.f1, second.mean_iou, second.severity) == (1.0, 1.0, 0.0)
    assert third.f1 is third.mean_iou is None
