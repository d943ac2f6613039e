"""TIDE's errors: each kind by hand; random cases against hotcoco, a plain search and the authors' own figures."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.evaluation.coco import UNDEFINED
from detrkit.evaluation.error_types import ERROR_NAMES, FALSE_POSITIVES, ErrorKind, classify_errors
from detrkit.types import ImageDetections

from .scenes import scene
from .test_coco import evaluate, random_case

HOTCOCO = {
    "classification": "Cls",
    "localization": "Loc",
    "both": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
    "false_positives": "FP",
    "false_negatives": "FN",
}
# tidecv 1.0.1 on ``case_for_tide(seed)``: counts, and costs in AP of 0 to 100.
TIDECV = {
    0: {
        "ap50": 33.824801,
        "counts": [112, 132, 29, 221, 100, 5],
        "cost": [10.610567, 15.630807, 1.090489, 4.271306, 2.383083, 1.284137, 43.897972, 9.869983],
    },
    2: {
        "ap50": 34.115115,
        "counts": [103, 90, 21, 233, 152, 9],
        "cost": [5.783055, 13.146921, 0.870765, 4.210738, 6.223965, 2.930500, 45.835380, 8.962493],
    },
}


def case_for_tide(seed, crowd=0.0):
    """A random case whose every class has objects."""
    content, detections = random_case(seed, ties=False, crowd=crowd)
    content["categories"] = content["categories"][:-1]
    return content, {
        image_id: ImageDetections(*(column[found.class_ids < 4] for column in found))
        for image_id, found in detections.items()
    }


def errors_of(*arguments, **options):
    return classify_errors(scene(*arguments, **options).matches())


def only(**counts):
    """Counts of all kinds, 0 where not given."""
    return {name: counts.get(name, 0) for name in ERROR_NAMES}


def test_a_wrong_class_alone():
    errors = errors_of([("a", 0), ("b", 1000)], [("b", 0.9, 0), ("b", 0.8, 1000)])
    assert errors.kinds.tolist() == [ErrorKind.CLASSIFICATION, ErrorKind.CORRECT]
    assert errors.partner.tolist() == [0, 1]
    assert errors.iou.tolist() == [1, 1]
    assert errors.counts == only(classification=1, false_positives=1, false_negatives=1)
    assert errors.ap50 == pytest.approx(0.25)  # of a 0, of b 0.5, which it would have without the wrong one
    assert errors.cost["classification"] == pytest.approx(0.75)
    assert errors.cost["false_positives"] == pytest.approx(0.25)
    assert errors.cost["missed"] == 0


@pytest.mark.parametrize(
    ("objects", "found", "kind", "partner"),
    [
        # a quarter of its own class's object goes before all of another's
        ([("a", 0), ("b", 60)], [("a", 0.9, 60)], ErrorKind.LOCALIZATION, 0),
        # an object of another class goes before the one that was found already
        ([("a", 0), ("b", 0)], [("a", 0.9, 0), ("a", 0.8, 10)], ErrorKind.CLASSIFICATION, 1),
        # a duplicate that also touches another class
        ([("a", 0), ("b", 60)], [("a", 0.9, 0), ("a", 0.8, 10)], ErrorKind.DUPLICATE, 0),
        # less than a tenth is background
        ([("a", 0)], [("b", 0.9, 90)], ErrorKind.BACKGROUND, -1),
        ([("a", 0)], [("b", 0.9, 80)], ErrorKind.BOTH, 0),
        # of two objects the nearer one explains
        ([("a", 0), ("a", 120)], [("a", 0.9, 70)], ErrorKind.LOCALIZATION, 1),
        ([("a", 0), ("a", 120)], [("b", 0.9, 100)], ErrorKind.CLASSIFICATION, 1),
    ],
)
def test_of_two_kinds_tide_takes_the_first_of_its_order(objects, found, kind, partner):
    errors = errors_of(objects, found)
    assert (errors.kinds[-1], errors.partner[-1]) == (kind, partner)


@pytest.mark.parametrize("seed", TIDECV)
def test_counts_and_costs_are_those_of_the_authors_code(seed):
    errors = classify_errors(evaluate(*case_for_tide(seed)).matches())
    assert [errors.counts[name] for name in ERROR_NAMES[:6]] == TIDECV[seed]["counts"]
    cost = [100 * errors.cost[name] for name in ERROR_NAMES]
    assert cost == pytest.approx(TIDECV[seed]["cost"], rel=1e-6)
    assert errors.ap50 == pytest.approx(TIDECV[seed]["ap50"] / 100)


@pytest.mark.parametrize("seed", range(20, 26))
def test_counts_and_costs_without_crowds_are_those_of_hotcoco(seed):
    content, detections = random_case(seed, crowd=0, ties=False, per_image=(12, 30)[seed % 2])
    evaluator = evaluate(content, detections)
    errors = classify_errors(evaluator.matches())
    theirs = evaluator.measure().tide_errors()
    assert {HOTCOCO[name]: errors.counts[name] for name in ERROR_NAMES[:6]} == theirs["counts"]
    for name in ERROR_NAMES:
        assert errors.cost[name] == pytest.approx(max(theirs["delta_ap"][HOTCOCO[name]], 0), abs=1e-12)
    assert errors.ap50 == pytest.approx(evaluator.finish()["AP50"], abs=1e-12)
    assert errors.counts["false_negatives"] == errors.measured.sum() - (errors.kinds == ErrorKind.CORRECT).sum()


def plain_iou(one, other):
    x, y = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[0] + one[2], other[0] + other[2]), min(one[1] + one[3], other[1] + other[3])
    inner = max(right - x, 0) * max(bottom - y, 0)
    return inner / (one[2] * one[3] + other[2] * other[3] - inner)


def plain_kind(matches, detection):
    """The kind and partner of a false positive as TIDE's code looks for them."""
    truth, found = matches.truth, matches.found
    same, other = (0.0, -1), (0.0, -1)
    for row in np.flatnonzero((truth.image_rows == found.image_rows[detection]) & ~truth.iscrowd).tolist():
        iou = plain_iou(found.boxes_xywh[detection], truth.boxes_xywh[row])
        if truth.class_ids[row] == found.class_ids[detection]:
            same = max(same, (iou, row), key=lambda pair: pair[0])
        else:
            other = max(other, (iou, row), key=lambda pair: pair[0])
    if 0.1 <= same[0] <= 0.5:
        return ErrorKind.LOCALIZATION, same[1]
    if other[0] >= 0.5:
        return ErrorKind.CLASSIFICATION, other[1]
    if same[0] > 0.5:
        return ErrorKind.DUPLICATE, same[1]
    return (ErrorKind.BACKGROUND, -1) if other[0] <= 0.1 else (ErrorKind.BOTH, other[1])


def test_every_kind_and_partner_with_crowds_is_what_a_plain_search_finds():
    matches = evaluate(*random_case(30, crowd=0.2)).matches()
    errors = classify_errors(matches)
    assert set(errors.kinds.tolist()) == {int(kind) for kind in ErrorKind}
    for detection, kind in enumerate(errors.kinds.tolist()):
        if kind in FALSE_POSITIVES:
            assert (kind, errors.partner[detection]) == plain_kind(matches, detection)
        else:
            assert errors.partner[detection] == matches.matched[0, detection]
        if errors.partner[detection] >= 0 and kind != ErrorKind.IGNORED:
            box = matches.truth.boxes_xywh[errors.partner[detection]]
            assert errors.iou[detection] == pytest.approx(plain_iou(matches.found.boxes_xywh[detection], box))


@pytest.mark.parametrize("score", [0.0, 0.3, 0.75, 1.1])
def test_counts_above_a_score_are_those_of_the_detections_above_it(score):
    content, detections = random_case(31)
    above = {
        image_id: ImageDetections(*(column[found.scores >= score] for column in found))
        for image_id, found in detections.items()
    }
    errors = classify_errors(evaluate(content, detections).matches())
    assert errors.counts_above(score) == classify_errors(evaluate(content, above).matches()).counts
    assert errors.counts == errors.counts_above(0)


def test_without_objects_all_is_background_and_nothing_has_a_cost():
    content, detections = random_case(32)
    errors = classify_errors(evaluate({**content, "annotations": []}, detections).matches())
    assert set(errors.kinds.tolist()) == {ErrorKind.BACKGROUND}
    assert errors.counts["background"] == len(errors.kinds)
    assert set(errors.cost.values()) == {errors.ap50} == {UNDEFINED}


def test_without_detections_all_is_missed():
    content, _ = random_case(33)
    errors = classify_errors(evaluate(content, {}).matches())
    assert errors.counts == only(missed=errors.measured.sum(), false_negatives=errors.measured.sum())
    assert errors.ap50 == 0
    assert errors.cost["missed"] == 1
    assert errors.cost["background"] == 0
    assert errors.partner.shape == errors.iou.shape == errors.kinds.shape == (0,)
