"""Precision, recall and F1 against the score."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.errors import UsageError
from detrkit.evaluation.coco import UNDEFINED
from detrkit.evaluation.score_curves import _cuts, iou_row, score_curves, together_cuts

from .scenes import scene
from .test_coco import evaluate, random_case

OBJECTS = [("a", 0), ("a", 1000), ("b", 2000)]
FOUND = [("a", 0.9, 0), ("a", 0.6, 5000), ("b", 0.5, 2000), ("b", 0.25, 6000)]


@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_curves_of_random_cases_are_those_of_a_plain_count(iou):
    matches = evaluate(*random_case(50)).matches()
    curves = score_curves(matches, iou)
    row = iou_row(iou)
    objects = matches.objects_by_class()
    for place in (0, 37, 60, 100, 140, 200):  # scores are tenths, and so are some of these
        threshold = curves.thresholds[place]
        taken = (matches.found.scores >= threshold) & ~matches.ignored[row]
        for class_id in range(-1, len(objects)):
            here = taken & ((matches.found.class_ids == class_id) | (class_id < 0))
            right = (here & matches.correct[row]).sum()
            total = objects.sum() if class_id < 0 else objects[class_id]
            precision = right / here.sum() if here.any() else UNDEFINED
            assert curves.precision[class_id + 1, place] == pytest.approx(precision)
            assert curves.recall[class_id + 1, place] == pytest.approx(right / total if total else UNDEFINED)
    assert matches.ignored[row].any()


def test_best_f1_is_that_of_hotcoco_for_each_class():
    """hotcoco takes the mean over classes, from curves of 101 recalls, so that it may miss the best a little."""
    content, detections = random_case(51, ties=False)
    evaluator = evaluate(content, detections)
    theirs = evaluator.measure().f_scores()["F1_50"]
    best = score_curves(evaluator.matches()).best_f1[1:]
    assert best[best > UNDEFINED].mean() == pytest.approx(theirs, abs=0.02)


def test_best_threshold_gives_the_best_f1():
    matches = evaluate(*random_case(52)).matches()
    curves = score_curves(matches)
    assert curves.best_f1[0] >= curves.f1[0].max() - 1e-12
    cuts = together_cuts(matches)
    place = cuts.place(curves.best_score[0])
    assert cuts.f1[place] == curves.best_f1[0] == cuts.f1.max()


def test_detections_of_equal_score_are_taken_together():
    cuts = together_cuts(scene([("a", 0)] * 2, [("a", 0.5, 0), ("a", 0.5, 5000), ("a", 0.25, 6000)]).matches())
    assert cuts.taken.tolist() == [2, 3]
    assert cuts.thresholds.tolist() == [0.375, 0.25]
    assert [cuts.place(score) for score in (0.6, 0.5, 0.3, 0.25, 0)] == [-1, 0, 0, 1, 1]


def test_a_threshold_lies_above_what_is_left_out_even_between_neighbours():
    high = np.float32(0.7)
    scores = [float(high), float(np.nextafter(high, np.float32(0)))]
    cuts = together_cuts(scene([("a", 0)], [("a", scores[0], 0), ("a", scores[1], 5000)]).matches())
    assert scores[1] < cuts.thresholds[0] <= scores[0]
    close = _cuts(np.array([0.7, np.nextafter(0.7, 0)]), np.array([True, False]), 1)
    assert close.place(close.thresholds[0]) == 0


def test_without_detections_the_best_f1_is_zero_at_no_score():
    curves = score_curves(scene([("a", 0)], []).matches())
    assert curves.best_f1.tolist() == [0, 0, UNDEFINED]
    assert curves.best_score.tolist() == [UNDEFINED] * 3
    assert (curves.precision == UNDEFINED).all()
    assert (curves.recall[:2] == 0).all()


def test_an_iou_between_those_that_were_matched_is_refused():
    with pytest.raises(UsageError, match=r"iou is 0\.52, expected one of 0\.5, 0\.55"):
        iou_row(0.52)
    assert [iou_row(value) for value in (0.5, 0.55, 0.95)] == [0, 1, 9]
