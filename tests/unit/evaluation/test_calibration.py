"""Whether scores are what they say, and mending them where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.errors import DataError
from detrkit.evaluation.calibration import calibrate, fit_scores, fit_temperature
from detrkit.evaluation.coco import UNDEFINED
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.threshold_file import logits_of
from detrkit.types import ImageDetections

from .scenes import scene
from .test_coco import evaluate, random_case


def simulated(temperature, bias, seed=0, count=4000):
    """Detections that are right as often as a true score says, and say another: distorted by a known scale.

    On a grid of objects, one detection each: at its object if it is to be right, far away if not.
    """
    rng = np.random.default_rng(seed)
    true_scores = rng.beta(1, 1.5, count)
    right = rng.random(count) < true_scores
    logits = temperature * (logits_of(true_scores) - bias)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    class_ids = rng.integers(0, 2, count)
    images = 40
    rows, left = np.arange(count) % images, 150 * (np.arange(count) // images)
    labels = zip(rows.tolist(), left.tolist(), class_ids.tolist(), strict=True)
    content = {
        "images": [{"id": i + 1, "height": 100, "width": 20000} for i in range(images)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": number + 1, "image_id": row + 1, "category_id": class_id + 1, "bbox": [x, 0, 50, 50]}
            for number, (row, x, class_id) in enumerate(labels)
        ],
    }
    evaluator = CocoEvaluator(content)
    x = np.where(right, left, left + 75)
    boxes = np.stack([x, np.zeros(count), x + 50, np.full(count, 50)], axis=1).astype(np.float32)
    for row in range(images):
        here = rows == row
        evaluator.add(row + 1, ImageDetections(boxes[here], scores[here], class_ids[here]))
    return evaluator


@pytest.mark.parametrize(("temperature", "bias"), [(2.0, 0.0), (0.4, 0.0), (1.0, 1.5), (1.7, -0.8)])
def test_a_known_distortion_is_found_and_undone(temperature, bias):
    fitted_on, checked_on = simulated(temperature, bias).matches(), simulated(temperature, bias, seed=1).matches()
    scale = fit_temperature(fitted_on)
    # 4,000 outcomes settle the temperature to 4 % and the bias to 0.1, one standard error
    assert scale.temperature == pytest.approx(temperature, rel=0.12)
    assert scale.bias == pytest.approx(bias, abs=0.3)
    before, after = calibrate(checked_on).ece, calibrate(checked_on, scale=scale).ece
    assert before > 0.06
    assert after < 0.025


def test_good_scores_are_left_as_they_are():
    matches = simulated(1.0, 0.0, seed=2).matches()
    scale = fit_temperature(matches)
    assert scale.temperature == pytest.approx(1, abs=0.06)
    assert scale.bias == 0  # it would not pay
    assert calibrate(matches).ece < 0.025


@pytest.mark.parametrize("bins", [10, 15])
def test_errors_and_bins_are_those_of_hotcoco(bins):
    content, detections = random_case(71, ties=False)
    evaluator = evaluate(content, detections)
    ours = calibrate(evaluator.matches(), bins)
    theirs = evaluator.measure().calibration(n_bins=bins, iou_threshold=0.5)
    assert ours.ece == pytest.approx(theirs["ece"])
    assert ours.mce == pytest.approx(theirs["mce"])
    assert ours.counts.tolist() == [entry["count"] for entry in theirs["bins"]]
    filled = ours.counts > 0
    for name, column in (("avg_confidence", ours.confidence), ("avg_accuracy", ours.accuracy)):
        np.testing.assert_allclose(column[filled], np.array([entry[name] for entry in theirs["bins"]])[filled])
    names = evaluator.truth.class_map.names
    for class_id, name in enumerate(names):
        assert ours.per_class_ece[class_id] == pytest.approx(theirs["per_category"].get(name, UNDEFINED))


def test_right_means_found_first_and_crowds_do_not_count():
    found = [("a", 0.95, 0), ("a", 0.85, 10), ("a", 0.75, 1000)]
    calibration = calibrate(scene([("a", 0)], found, crowds=[("a", 1000)]).matches(), bins=10)
    assert calibration.counts.tolist() == [0] * 8 + [1, 1]
    assert calibration.accuracy.tolist() == [UNDEFINED] * 8 + [0, 1]
    assert calibration.ece == pytest.approx((0.05 + 0.85) / 2)
    assert calibration.mce == pytest.approx(0.85)
    assert calibration.per_class_ece.tolist() == pytest.approx([calibration.ece, UNDEFINED])


def test_a_score_of_one_belongs_to_the_last_bin():
    calibration = calibrate(scene([("a", 0)], [("a", 1.0, 0), ("a", 0.0, 5000)]).matches(), bins=4)
    assert calibration.counts.tolist() == [1, 0, 0, 1]
    assert calibration.ece == 0


def test_without_detections_nothing_is_defined():
    calibration = calibrate(scene([("a", 0)], []).matches())
    assert calibration.ece == calibration.mce == UNDEFINED
    assert calibration.counts.sum() == 0


def test_scores_that_are_no_probabilities_are_refused():
    matches = scene([("a", 0)], [("a", 7.5, 0)]).matches()
    with pytest.raises(DataError, match=r"1 scores are not 0 to 1, such as 7\.5"):
        calibrate(matches)


@pytest.mark.parametrize(
    ("correct", "message"),
    [
        ([True, True], "every one of 2 detections is correct"),
        ([False], "every one of 1 detections is wrong"),
        ([], "no detections"),
    ],
)
def test_outcomes_that_are_all_the_same_cannot_be_fitted(correct, message):
    with pytest.raises(DataError, match=message):
        fit_scores(np.full(len(correct), 0.5), np.array(correct, dtype=bool))


def test_scores_of_exactly_zero_and_one_do_not_spoil_the_fit():
    rng = np.random.default_rng(0)
    scores = rng.random(4000)
    correct = rng.random(4000) < scores
    scores[:3], correct[:3] = (0, 1, 1), (True, False, True)
    scale = fit_scores(scores, correct)
    assert scale.temperature == pytest.approx(1, abs=0.1)
    assert np.isfinite(scale(np.array([0.0, 1.0]))).all()
