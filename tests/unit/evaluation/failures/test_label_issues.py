"""Planted label errors are found, and little else is claimed."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.evaluation.failures.label_issues import LEAST_RANK, REASONS, LabelIssue, find_label_issues
from detrkit.evaluation.matching import box_iou
from detrkit.evaluation.truth import CocoTruth

from .cases import (
    Spoiled,
    failures_of,
    found_of,
    generated_truth,
    joined,
    matched,
    names_of,
    near_perfect_detector,
    simulated_detector,
    truth_of,
    with_label_errors,
)

CAT, DOG, BIRD = range(3)
BOX = (100.0, 100.0, 100.0, 100.0)
ELSEWHERE = (400.0, 300.0, 80.0, 80.0)


def issues_of(truth: CocoTruth, *extra) -> list[LabelIssue]:
    """Suspects of a set of which a good detector finds everything else."""
    matches = matched(truth, joined(near_perfect_detector(truth), found_of(*extra)))
    return find_label_issues(matches, names_of(truth))


def planted(spoiled: Spoiled, issue: LabelIssue) -> tuple[str, int] | None:
    """Which of the planted label errors a issue is."""
    if issue.annotation is None:
        rows = np.flatnonzero(spoiled.removed[:, 0] == issue.image_row)
        iou = box_iou(spoiled.removed[rows, 1:], np.tile(issue.proposed_box_xywh or (), (len(rows), 1)))
        return ("missing label", int(rows[iou.argmax()])) if len(rows) and iou.max() > 0.5 else None
    if issue.annotation in spoiled.swapped:
        return "wrong class", issue.annotation
    return ("badly placed box", issue.annotation) if issue.annotation in spoiled.shifted else None


def judged(truth: CocoTruth, seed: int) -> tuple[float, float, float, dict[str, float]]:
    """Precision of the first half and of as many as were planted, recall, and recall by reason."""
    spoiled = with_label_errors(truth, seed=seed)
    matches = matched(spoiled.truth, simulated_detector(truth, seed))
    issues = find_label_issues(matches, names_of(truth))
    hits = [planted(spoiled, issue) for issue in issues]
    each = len(spoiled.removed)
    right = [hit is not None for hit in hits]
    found = {hit for hit in hits if hit}
    reasons = {reason: sum(kind == reason for kind, _ in found) / each for reason in REASONS[:3]}
    first, all_planted = 3 * each // 2, 3 * each
    return float(np.mean(right[:first])), float(np.mean(right[:all_planted])), len(found) / all_planted, reasons


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_label_errors_are_at_the_top(seed):
    half, every, recall, reasons = judged(generated_truth(seed, images=300), seed)
    assert half > 0.85
    assert every > 0.7
    assert recall > 0.72
    assert min(reasons.values()) > 0.6


def test_a_good_detector_on_right_labels_suspects_nothing():
    assert issues_of(generated_truth(3)) == []


def test_a_confident_detection_without_a_label_is_a_missing_label():
    (issue,) = issues_of(truth_of((0, CAT, BOX)), (0, DOG, 0.95, ELSEWHERE), (0, CAT, 0.8, ELSEWHERE))
    assert issue.reason == "missing label"
    assert issue.annotation is issue.class_id is issue.box_xywh is issue.iou is None
    assert (issue.proposed_class_id, issue.proposed_box_xywh, issue.score) == (DOG, ELSEWHERE, 0.95)
    assert issue.explanation == "dog found with score 0.95 where nothing is labelled"
    assert (issue.image_id, issue.file_name) == (7, "000007.jpg")


def test_a_detection_in_a_crowd_region_is_no_missing_label():
    truth = truth_of((0, CAT, BOX), (1, CAT, (300.0, 200.0, 300.0, 250.0)), crowd=(1,))
    assert issues_of(truth, (1, DOG, 0.95, ELSEWHERE), (1, CAT, 0.95, ELSEWHERE)) == []


def test_an_object_called_something_else_has_the_wrong_class():
    truth = truth_of((0, CAT, BOX), (1, CAT, BOX))
    found = found_of((0, CAT, 0.8, BOX), (1, BIRD, 0.95, (102.0, 100.0, 100.0, 100.0)))
    (issue,) = find_label_issues(matched(truth, found), names_of(truth))
    assert issue.reason == "wrong class"
    assert (issue.annotation, issue.class_id, issue.proposed_class_id) == (1, CAT, BIRD)
    assert issue.box_xywh == BOX
    assert issue.iou == pytest.approx(98 / 102)


def test_being_found_as_labelled_too_makes_a_wrong_class_less_likely():
    truth = truth_of((0, CAT, BOX), (1, CAT, BOX), (2, CAT, BOX))
    found = found_of((0, CAT, 0.8, BOX), (1, BIRD, 0.95, BOX), (2, BIRD, 0.95, BOX), (2, CAT, 0.8, BOX))
    issues = find_label_issues(matched(truth, found), names_of(truth))
    first, second = (issue for issue in issues if issue.reason == "wrong class")
    assert (first.annotation, second.annotation) == (1, 2)
    assert second.rank < 0.7 * first.rank


def test_a_label_is_asked_about_once_though_two_things_speak_against_it():
    truth = truth_of((0, CAT, BOX), (0, CAT, (101.0, 100.0, 100.0, 100.0)))
    issues = find_label_issues(matched(truth, found_of((0, BIRD, 0.95, BOX))), names_of(truth))
    assert sorted((issue.annotation, issue.reason) for issue in issues) == [(0, "wrong class"), (1, "wrong class")]


def test_a_confident_detection_beside_its_object_speaks_of_a_badly_placed_box():
    truth = generated_truth(4, images=40)
    row = 17
    truth.boxes_xywh[row] = (200.0, 200.0, 100.0, 100.0)
    found = near_perfect_detector(truth)
    truth.boxes_xywh[row] += (40.0, 0.0, 0.0, 0.0)
    issues = find_label_issues(matched(truth, found), names_of(truth))
    assert issues[0].reason == "badly placed box"
    assert issues[0].annotation == row
    assert issues[0].iou == pytest.approx(60 / 140, abs=0.06)


def test_a_label_that_nothing_finds_is_suspect_only_if_its_like_are_found():
    truth = generated_truth(5)
    found = near_perfect_detector(truth)
    gone = 31
    without = found.select(np.arange(len(found)) != gone)
    issues = find_label_issues(matched(truth, without), names_of(truth))
    assert [(issue.reason, issue.annotation) for issue in issues] == [("label without object", gone)]
    half_blind = found.select(np.arange(len(found)) % 2 == 0)
    assert find_label_issues(matched(truth, half_blind), names_of(truth)) == []


def test_two_labels_of_a_class_in_one_place_are_one_object_labelled_twice():
    near = (101.0, 100.0, 100.0, 100.0)
    truth = truth_of((0, CAT, BOX), (0, CAT, near), (1, CAT, BOX), (1, DOG, near))
    found = found_of((0, CAT, 0.9, BOX), (1, CAT, 0.9, BOX), (1, DOG, 0.9, near))
    (issue,) = [s for s in find_label_issues(matched(truth, found), names_of(truth)) if s.reason == REASONS[-1]]
    assert issue.annotation == 1
    assert issue.proposed_box_xywh is issue.score is None
    assert issue.iou == pytest.approx(99 / 101)


def test_ranks_lie_in_0_to_1_in_order_and_no_label_is_listed_twice():
    truth = generated_truth(6)
    issues = failures_of(with_label_errors(truth, 0.1).truth, simulated_detector(truth)).label_issues
    ranks = [issue.rank for issue in issues]
    assert ranks == sorted(ranks, reverse=True)
    assert LEAST_RANK <= ranks[-1] <= ranks[0] <= 1
    annotations = [issue.annotation for issue in issues if issue.annotation is not None]
    assert len(annotations) == len(set(annotations)) > 20


def test_no_detections_and_no_labels_are_no_suspects():
    truth = truth_of((0, CAT, BOX))
    assert find_label_issues(matched(truth, found_of()), names_of(truth)) == []
    nothing = truth_of()
    assert find_label_issues(matched(nothing, found_of()), names_of(nothing)) == []
    assert find_label_issues(matched(nothing, found_of((0, CAT, 0.9, BOX))), names_of(nothing)) != []
