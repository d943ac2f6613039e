"""Thresholds chosen for a precision, a recall or the best F1."""

from __future__ import annotations

import pytest

from detrkit.classes import ClassMap
from detrkit.errors import DataError, UsageError
from detrkit.evaluation.score_curves import score_curves
from detrkit.evaluation.thresholds import Wish, check_thresholds, cross_check, thresholds_for

from .scenes import scene
from .test_calibration import simulated
from .test_coco import evaluate, random_case

# Of a: right 0.9, 0.8, wrong 0.7, right 0.6, wrong 0.5; of b: wrong 0.9, right 0.4.
OBJECTS = [("a", 0), ("a", 1000), ("a", 2000), ("a", 3000), ("b", 6000)]
FOUND = [
    ("a", 0.9, 0),
    ("a", 0.8, 1000),
    ("a", 0.7, 8000),
    ("a", 0.6, 2000),
    ("a", 0.5, 9000),
    ("b", 0.9, 7000),
    ("b", 0.4, 6000),
]


def chosen(wish=None, least_objects=1, objects=OBJECTS, found=FOUND, classes="abc", **options):
    evaluator = scene(objects, found, classes=classes, **options)
    return thresholds_for(evaluator.matches(), evaluator.class_map, wish, least_objects=least_objects)


@pytest.mark.parametrize(
    ("wish", "score", "precision", "recall", "reached"),
    [
        (Wish(), 0.55, 3 / 4, 3 / 4, True),
        (Wish("precision", 0.9), 0.75, 1, 2 / 4, True),
        (Wish("precision", 0.75), 0.55, 3 / 4, 3 / 4, True),
        (Wish("precision", 0.5), 0.55, 3 / 4, 3 / 4, True),  # a lower score finds no more
        (Wish("recall", 0.5), 0.75, 1, 2 / 4, True),
        (Wish("recall", 0.6), 0.55, 3 / 4, 3 / 4, True),
        (Wish("recall", 0.9), 0.55, 3 / 4, 3 / 4, False),
    ],
)
def test_the_threshold_of_a_class_by_hand(wish, score, precision, recall, reached):
    entry = chosen(wish).classes[0]
    assert entry.score == pytest.approx(score)
    assert entry.precision == pytest.approx(precision)
    assert entry.recall == pytest.approx(recall)
    assert (entry.own, entry.reached, entry.objects) == (True, reached, 4)


def test_a_precision_that_cannot_be_reached_gets_the_nearest():
    entry = chosen(Wish("precision", 0.9)).classes[1]
    assert not entry.reached
    assert entry.score == pytest.approx(0.4)
    assert entry.precision == pytest.approx(0.5)


def test_a_class_with_few_objects_gets_the_threshold_of_all():
    thresholds = chosen(least_objects=2)
    own, few, none = thresholds.classes
    assert own.own
    assert (few.own, none.own) == (False, False)
    assert few.score == none.score == thresholds.default == pytest.approx(0.4)  # 4 of 7 right, of 5
    assert (few.precision, few.recall) == (1 / 2, 1)
    assert (none.objects, none.precision, none.recall) == (0, None, None)
    together = score_curves(scene(OBJECTS, FOUND, classes="abc").matches())
    assert thresholds.default == together.best_score[0]


def test_a_class_that_was_never_detected_gets_the_threshold_of_all():
    thresholds = chosen(objects=[*OBJECTS, ("c", 500)])
    assert not thresholds.classes[2].own
    assert thresholds.classes[2].recall == 0


def test_classes_that_the_data_lacks_get_the_threshold_of_all():
    evaluator = scene(OBJECTS, FOUND)
    model = ClassMap(("zebra", "b", "a"), (1, 2, 3))
    thresholds = thresholds_for(evaluator.matches(), model, least_objects=1, data="rows", split="val")
    assert [entry.name for entry in thresholds.classes] == ["zebra", "b", "a"]
    assert [entry.category_id for entry in thresholds.classes] == [1, 2, 3]
    assert [entry.own for entry in thresholds.classes] == [False, True, True]
    assert thresholds.classes[2].score == pytest.approx(0.55)
    assert (thresholds.data, thresholds.split, thresholds.images, thresholds.objects) == ("rows", "val", 1, 5)


def test_what_is_expected_is_what_a_check_on_the_same_images_finds():
    evaluator = evaluate(*random_case(81, images=40))
    matches = evaluator.matches()
    thresholds = thresholds_for(matches, evaluator.class_map, Wish("precision", 0.6), calibration=True)
    check = check_thresholds(matches, evaluator.class_map, thresholds)
    for class_id, entry in enumerate(thresholds.classes):
        assert check.precision(class_id) == pytest.approx(entry.precision)
        assert check.recall(class_id) == pytest.approx(entry.recall)
    # and what is kept by the thresholds themselves, from the model's own scores
    kept = thresholds.apply(matches.found.scores, matches.found.class_ids) & ~matches.ignored[0]
    assert check.taken.sum() == kept.sum()
    assert check.right.sum() == (kept & matches.correct[0]).sum()


def test_a_check_counts_by_the_models_classes():
    evaluator = scene(OBJECTS, FOUND)
    model = ClassMap(("zebra", "b", "a"), (1, 2, 3))
    thresholds = thresholds_for(evaluator.matches(), model, least_objects=1)
    check = check_thresholds(evaluator.matches(), model, thresholds)
    assert check.objects.tolist() == [0, 1, 4]
    assert check.taken.tolist() == [0, 2, 4]
    assert check.right.tolist() == [0, 1, 3]
    assert check.precision() == pytest.approx(4 / 6)
    assert check.recall() == pytest.approx(4 / 5)
    assert check.f1() == pytest.approx(8 / 11)
    assert (check.precision(0), check.recall(0), check.f1(0)) == (None, None, None)
    content = check.to_dict(thresholds)
    assert content["precision"] == pytest.approx(4 / 6)
    assert [entry["name"] for entry in content["classes"]] == ["zebra", "b", "a"]


def test_calibration_is_checked_on_other_images():
    fitted, checked = simulated(2.0, 0.5), simulated(2.0, 0.5, seed=1)
    thresholds = thresholds_for(fitted.matches(), fitted.class_map, Wish("precision", 0.7), calibration=True)
    check = check_thresholds(checked.matches(), checked.class_map, thresholds)
    assert check.ece > 0.08
    assert check.ece_calibrated < 0.025
    assert check.precision() == pytest.approx(0.7, abs=0.04)


def test_halves_checked_on_each_other_count_every_image_once():
    evaluator = simulated(1.0, 0.0)

    def choose(matches):
        return thresholds_for(matches, evaluator.class_map, Wish("precision", 0.8))

    check = cross_check(evaluator, choose, evaluator.class_map)
    assert check.objects.tolist() == evaluator.matches().objects_by_class().tolist()
    assert check.precision() == pytest.approx(0.8, abs=0.04)
    expected = check_thresholds(evaluator.matches(), evaluator.class_map, choose(evaluator.matches()))
    assert check.taken.sum() == pytest.approx(expected.taken.sum(), rel=0.1)
    assert check.ece == pytest.approx(expected.ece, abs=0.02)


@pytest.mark.parametrize(
    ("objects", "found", "message"),
    [
        ([], FOUND, "the split has no annotated objects"),
        (OBJECTS, [], "the split has no detections"),
        (OBJECTS, [("a", 3.0, 0)], "scores reach from 3 to 3; thresholds need scores 0 to 1"),
    ],
)
def test_where_there_is_nothing_to_choose_from_that_is_said(objects, found, message):
    with pytest.raises(DataError, match=message):
        chosen(objects=objects, found=found)


@pytest.mark.parametrize(
    ("criterion", "value"), [("precision", None), ("precision", 0), ("recall", 1.2), ("f1", 0.5)]
)
def test_a_wish_that_makes_no_sense_is_refused(criterion, value):
    with pytest.raises(UsageError, match=r"wished is|takes no value"):
        Wish(criterion, value)
