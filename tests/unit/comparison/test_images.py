"""On which images two detectors disagree, by hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.classes import ClassMap
from detrkit.comparison.images import compare_images, operate
from detrkit.evaluation.coco import ImageResults
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.matching import Matches
from detrkit.evaluation.truth import CocoTruth

OBJECT = [10.0, 10.0, 20.0, 20.0]
OTHER = [50.0, 10.0, 20.0, 20.0]
CROWD = [10.0, 60.0, 30.0, 30.0]
NOTHING = [80.0, 80.0, 5.0, 5.0]


def make_truth() -> CocoTruth:
    """Image 1: two objects; image 2: one and a crowd region; image 3: none."""
    return CocoTruth(
        image_ids=np.array([1, 2, 3]),
        sizes_hw=np.full((3, 2), 100),
        image_rows=np.array([0, 0, 1, 1]),
        class_ids=np.zeros(4, np.int64),
        boxes_xywh=np.array([OBJECT, OTHER, OBJECT, CROWD]),
        area=np.array([400.0, 400, 400, 900]),
        iscrowd=np.array([False, False, False, True]),
        class_map=ClassMap(("cat",), (1,)),
    )


def matches_of(found: dict[int, list[tuple[list[float], float]]]) -> Matches:
    evaluator = CocoEvaluator(make_truth())
    for image_id, entries in found.items():
        boxes = np.array([box for box, _ in entries], dtype=np.float64).reshape(-1, 4)
        scores = np.array([score for _, score in entries])
        evaluator.add(image_id, ImageResults(boxes, scores, np.zeros(len(entries), np.int64)))
    return evaluator.matches()


def test_mistakes_are_what_is_missed_and_what_is_false_at_the_best_threshold():
    # At a threshold between 0.8 and 0.4: 3 right, 1 false, 0 missed; the weak ones would only be false.
    matches = matches_of(
        {
            1: [(OBJECT, 0.9), (OTHER, 0.8), (NOTHING, 0.2)],
            2: [(OBJECT, 0.9), (CROWD, 0.95), (NOTHING, 0.3)],
            3: [(NOTHING, 0.85)],
        }
    )
    operation = operate(matches)
    assert 0.3 < operation.threshold <= 0.8
    assert operation.best_f1 == pytest.approx(2 * 3 / (4 + 3))
    assert operation.missed.tolist() == [0, 0, 0]
    assert operation.false.tolist() == [0, 0, 1]  # in the crowd region nothing is false


def test_a_badly_placed_box_counts_at_the_thresholds_that_it_does_not_reach():
    shifted = [10.0, 10.0, 20.0, 15.0]  # IoU 0.75: found at 0.50 to 0.75, that is 6 of 10
    operation = operate(matches_of({1: [(shifted, 0.9), (OTHER, 0.9)], 2: [(OBJECT, 0.9)]}))
    np.testing.assert_allclose(operation.missed, [0.4, 0, 0])
    np.testing.assert_allclose(operation.false, [0.4, 0, 0])


def test_detectors_that_find_different_objects_disagree_even_if_neither_is_better():
    first = matches_of({1: [(OBJECT, 0.9)], 2: [(OBJECT, 0.8)]})
    second = matches_of({1: [(OTHER, 0.9)], 2: [(OBJECT, 0.8)], 3: [(NOTHING, 0.9)]})
    differences = compare_images(first, operate(first), operate(second))
    assert differences.objects.tolist() == [2, 1, 0]
    assert differences.disagreement.tolist() == [2, 0, 1]
    assert differences.gain.tolist() == [0, 0, -1]
    assert differences.ranked().tolist() == [0, 2]


def test_a_detector_that_finds_nothing_right_has_no_threshold_and_misses_everything():
    operation = operate(matches_of({1: [(NOTHING, 0.9)]}))
    assert operation.threshold == np.inf
    assert operation.missed.tolist() == [2, 1, 0]
    assert operation.false.tolist() == [0, 0, 0]
    assert operate(matches_of({})).missed.tolist() == [2, 1, 0]
