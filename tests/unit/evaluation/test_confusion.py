"""Which class is taken for which."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.errors import UsageError
from detrkit.evaluation.confusion import confusion
from detrkit.evaluation.score_curves import score_curves

from .scenes import scene
from .test_coco import evaluate, random_case
from .test_error_types import plain_iou


def test_the_default_score_is_that_of_the_best_f1():
    matches = evaluate(*random_case(60)).matches()
    result = confusion(matches)
    assert result.score == score_curves(matches).best_score[0]
    np.testing.assert_array_equal(result.matrix, confusion(matches, score=result.score).matrix)


@pytest.mark.parametrize("score", [0.0, 0.5, 0.8])
def test_without_crowds_it_is_hotcocos(score):
    content, detections = random_case(61, crowd=0, ties=False)
    evaluator = evaluate(content, detections)
    theirs = evaluator.measure().confusion_matrix(iou_thr=0.5, min_score=score)["matrix"]
    np.testing.assert_array_equal(confusion(evaluator.matches(), score=score).matrix, theirs)


def plain_confusion(matches, score):
    """Detections in order of score take the free object of any class that they overlap most."""
    truth, found = matches.truth, matches.found
    size = len(truth.class_map) + 1
    matrix = np.zeros((size, size), int)
    free = matches.measured.copy()
    for detection in range(len(found)):  # by image and score
        if found.scores[detection] < score:
            continue
        near = [
            (plain_iou(found.boxes_xywh[detection], truth.boxes_xywh[row]), row)
            for row in np.flatnonzero(free & (truth.image_rows == found.image_rows[detection])).tolist()
        ]
        iou, row = max(near, default=(0.0, -1))
        if iou >= 0.5:
            free[row] = False
            matrix[truth.class_ids[row], found.class_ids[detection]] += 1
        elif not matches.ignored[0, detection]:
            matrix[-1, found.class_ids[detection]] += 1
    np.add.at(matrix[:, -1], truth.class_ids[free], 1)
    return matrix


@pytest.mark.parametrize("score", [0.0, 0.45])
def test_with_crowds_it_is_what_a_plain_count_gives(score):
    matches = evaluate(*random_case(62, crowd=0.3)).matches()
    assert matches.ignored[0].any()
    np.testing.assert_array_equal(confusion(matches, score=score).matrix, plain_confusion(matches, score))


def test_without_objects_or_detections_the_matrix_says_so():
    alone = confusion(scene([], [("a", 0.9, 0)]).matches())
    assert alone.matrix.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert alone.score == 0
    missed = confusion(scene([("b", 0)], []).matches())
    assert missed.matrix.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_an_unknown_iou_is_refused():
    with pytest.raises(UsageError, match=r"iou is 0\.3"):
        confusion(scene([("a", 0)], []).matches(), iou=0.3)
