"""The sentences at the top of a report."""

from __future__ import annotations

import dataclasses

import numpy as np

from detrkit.evaluation.analysis import Origin, analyze
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.report.verdict import operating_point, verdict, warnings
from detrkit.types import ImageDetections
from tests.unit.evaluation.report.conftest import made, nothing_detected, nothing_to_find
from tests.unit.evaluation.report.simulated import generated


def perfect(change=lambda boxes, scores, class_ids: (boxes, scores, class_ids), names=None):
    """An evaluator with every object found, or with what ``change`` makes of that."""
    evaluator = CocoEvaluator(generated(images=60, names=names or ["cat", "dog", "cow"]))
    truth = evaluator.truth
    for row, image_id in enumerate(truth.image_ids.tolist()):
        here = (truth.image_rows == row) & ~truth.iscrowd
        boxes = truth.boxes_xywh[here].copy()
        boxes[:, 2:] += boxes[:, :2]
        evaluator.add(image_id, ImageDetections(*change(boxes, np.full(len(boxes), 0.9), truth.class_ids[here])))
    return evaluator


def said(evaluator, **options):
    return " ".join(verdict(analyze(evaluator, resamples=0, **options)))


def test_a_perfect_detector_has_nothing_to_mend():
    text = said(perfect())
    assert "AP is 100.0, AP50 100.0, on 60 images" in text
    assert "100 % of the objects are found and 100 % of the detections are right" in text
    assert "No kind of error costs anything worth naming." in text
    assert "All 3 classes" in text
    assert "worst" not in text


def test_the_dearest_error_is_named():
    swapped = perfect(lambda boxes, scores, ids: (boxes, scores, np.where(ids == 1, 0, ids)))
    text = said(swapped)
    assert "Most is lost to classification errors" in text
    assert '"dog" is most often taken for "cat"' in text
    assert '"dog" worst (0.0)' in text
    moved = perfect(lambda boxes, scores, ids: (boxes + 0.4 * (boxes[:, [2]] - boxes[:, [0]]), scores, ids))
    assert "Most is lost to localization errors" in said(moved)
    lost = perfect(lambda boxes, scores, ids: (boxes[::2], scores[::2], ids[::2]))
    assert "Most is lost to missed objects" in said(lost)
    far = np.array([[300.0, 220, 319, 239]])
    clutter = perfect(lambda b, s, ids: (np.r_[far, b], np.r_[0.99, s], np.r_[0, ids]))
    assert "Most is lost to background errors" in said(clutter)


def test_scores_that_promise_too_much_are_named():
    rng = np.random.default_rng(0)

    def half_wrong(boxes, scores, class_ids):
        wrong = rng.random(len(boxes)) < 0.5
        return np.where(wrong[:, None], boxes + 400, boxes), scores, class_ids

    assert "mostly too high" in said(perfect(half_wrong))
    assert "mostly too low" in said(perfect(lambda boxes, scores, ids: (boxes, scores - 0.4, ids)))
    assert "Scores do not mean" not in said(perfect(lambda boxes, scores, ids: (boxes, scores + 0.09, ids)))


def test_nothing_found_and_nothing_to_find_are_said_plainly():
    assert verdict(nothing_detected())[0].startswith("Nothing was detected on 40 images with")
    assert verdict(nothing_to_find())[0].startswith("There is nothing to find")


def test_few_images_and_images_of_the_training_are_warned_of():
    evaluation = made(generated(images=6, seed=2), resamples=100)
    assert any("points wide" in line for line in warnings(evaluation))
    trained = dataclasses.replace(evaluation, origin=Origin(seen_in_training=True))
    assert "trained on" in warnings(trained)[0]
    assert warnings(analyze(perfect(), resamples=100)) == []


def test_the_operating_point_is_what_the_threshold_gives():
    evaluation = made(generated())
    score, precision, recall, f1 = operating_point(evaluation)
    taken = evaluation.matches.found.scores >= score
    right = (evaluation.matches.correct[0] & taken).sum()
    counted = (taken & ~evaluation.matches.ignored[0]).sum()
    assert precision == right / counted
    assert recall == right / evaluation.metrics.objects
    assert f1 == 2 * right / (counted + evaluation.metrics.objects)
