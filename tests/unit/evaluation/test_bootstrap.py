"""Intervals hold the true value as often as they say, and differences are paired."""

import numpy as np
import pytest

from benchmarks.coverage import OURS, SETTINGS, UNLIKE, Setting, cover, table
from detrkit.errors import DataError, UsageError
from detrkit.evaluation.bootstrap import LEAST_IMAGES, bootstrap, paired_bootstrap, resample
from detrkit.evaluation.evaluator import CocoEvaluator
from tests.support.simulation import Scene, Skill, simulate

from .scenes import objects_in_images
from .test_coco import evaluate, perfect, random_case


def test_values_are_those_of_the_evaluation_and_lie_in_their_intervals():
    content, detections = random_case(0, images=40)
    evaluator = evaluate(content, detections)
    metrics = evaluator.finish()
    intervals = bootstrap(evaluator.matches(), 200, seed=3)
    assert (intervals.confidence, intervals.resamples, intervals.seed) == (0.95, 200, 3)
    assert list(intervals.values) == ["AP", "AP50", "AP75"]
    for name, interval in intervals.values.items():
        assert interval.value == pytest.approx(metrics[name], abs=1e-12)
        assert 0 < interval.low < interval.value <= interval.high < 1
    for expected, entry in zip(metrics.per_class, intervals.per_class, strict=True):
        if not expected.objects:
            assert entry is None
            continue
        assert [entry[name].value for name in ("AP", "AP50")] == pytest.approx([expected.AP, expected.AP50])
        assert all(interval.low < interval.value <= interval.high for interval in entry.values())
    assert intervals.per_class[-1] is None


def test_the_same_seed_gives_the_same_intervals():
    content, detections = random_case(1)
    matches = evaluate(content, detections).matches()
    assert bootstrap(matches, 50, seed=1) == bootstrap(matches, 50, seed=1)
    assert bootstrap(matches, 50, seed=1).values != bootstrap(matches, 50, seed=2).values
    other = evaluate(content, {k: v for k, v in detections.items() if k % 2}).matches()
    assert paired_bootstrap(matches, other, 50, seed=1) == paired_bootstrap(matches, other, 50, seed=1)


def test_more_confidence_and_fewer_images_widen_the_interval():
    content, detections = random_case(2, images=80)
    evaluator = evaluate(content, detections)
    widths = [
        interval.high - interval.low
        for interval in (
            bootstrap(evaluator.matches(), 200, confidence=0.5).values["AP"],
            bootstrap(evaluator.matches(), 200).values["AP"],
            bootstrap(evaluator.matches(sorted(detections)[:20]), 200).values["AP"],
        )
    ]
    assert 2 * widths[0] < widths[1] < widths[2] / 1.5


def test_a_class_in_too_few_images_has_no_interval():
    content = objects_in_images(20, class_of=lambda image: int(image < LEAST_IMAGES - 1), classes=3)
    intervals = bootstrap(perfect(content).matches(), 50)
    assert intervals.per_class[0]["AP"].value == pytest.approx(1)
    assert intervals.per_class[1:] == (None, None)
    enough = objects_in_images(20, class_of=lambda image: int(image < LEAST_IMAGES), classes=3)
    assert bootstrap(perfect(enough).matches(), 50).per_class[1] is not None


def test_one_image_and_no_objects_have_no_interval():
    assert not bootstrap(perfect(objects_in_images(1)).matches(), 50).values
    content, detections = random_case(5)
    empty = bootstrap(evaluate({**content, "annotations": []}, detections).matches(), 50)
    assert not empty.values
    assert empty.per_class == (None,) * 5


@pytest.mark.parametrize("images", [10, 100])
def test_nothing_or_everything_found_is_not_taken_for_certain(images):
    """The bound is that of n trials without a success, 1 - 0.025 ** (1 / n)."""
    content = objects_in_images(images)
    beyond = 1 - 0.025 ** (1 / images)
    assert 0.03 < beyond < 0.4
    none = bootstrap(CocoEvaluator(content).matches(), 50).values["AP"]
    assert (none.value, none.low, none.high) == pytest.approx((0, 0, beyond))
    all_found = bootstrap(perfect(content).matches(), 50).values["AP"]
    assert (all_found.value, all_found.low, all_found.high) == pytest.approx((1, 1 - beyond, 1))


def test_a_difference_is_second_less_first():
    content, detections = random_case(7, images=60, ties=False)
    good, bad = evaluate(content, detections), evaluate(content, {k: v for k, v in detections.items() if k % 2})
    metrics = good.finish(), bad.finish()
    change = paired_bootstrap(good.matches(), bad.matches(), 200)
    back = paired_bootstrap(bad.matches(), good.matches(), 200)
    for name, value in change.values.items():
        assert value.value == pytest.approx(metrics[1][name] - metrics[0][name], abs=1e-12)
        assert value.low < value.value < value.high < 0
        assert value.probability == 0
        assert back.values[name].probability == 1
        assert (back.values[name].low, back.values[name].high) == pytest.approx((-value.high, -value.low))
    assert change.per_class[0]["AP50"].value < 0
    assert change.per_class[-1] is None


def test_a_model_does_not_differ_from_itself():
    content, detections = random_case(8)
    matches = evaluate(content, detections).matches()
    values = paired_bootstrap(matches, matches, 50).values
    assert [(v.value, v.low, v.high, v.probability) for v in values.values()] == [(0, 0, 0, 0.5)] * 3


def test_the_same_resamples_for_both_make_the_difference_surer_than_either():
    skills = [Skill(spread=4.0), Skill(spread=4.0, background=1.2)]  # what is hard for one is hard for the other
    first, second = resample(simulate(Scene((3.0, 3.0)), skills, 150, seed=0), 200, 0)
    alone = [model.samples[1, -1].std() for model in (first, second)]
    assert (second.samples - first.samples)[1, -1].std() < 0.8 * np.hypot(*alone)


def test_models_of_different_images_are_not_compared():
    content, detections = random_case(9)
    evaluator = evaluate(content, detections)
    with pytest.raises(DataError, match=r"25 and 5 images.*same data set"):
        paired_bootstrap(evaluator.matches(), evaluator.matches(sorted(detections)[:5]), 50)


@pytest.mark.parametrize(("options", "message"), [((5, 0.95), "resamples is 5"), ((50, 1.0), "confidence is 1.0")])
def test_what_cannot_be_resampled_is_refused(options, message):
    content, detections = random_case(10, images=5)
    matches = evaluate(content, detections).matches()
    resamples, confidence = options
    with pytest.raises(UsageError, match=message):
        bootstrap(matches, resamples, confidence=confidence)
    with pytest.raises(UsageError, match=message):
        paired_bootstrap(matches, matches, resamples, confidence=confidence)


def test_intervals_hold_the_true_value_where_plain_percentiles_do_not():
    """Few small sets: the shares are known to about 3 %."""
    setting = Setting("one class", Scene((2.0,)), UNLIKE, 60)
    coverage = cover(setting, sets=50, resamples=60, endless=20_000)
    held = {name: coverage.models[name][:, :, 0, -1].mean() for name in coverage.models}
    assert 0.88 <= held[OURS] < 1
    assert held["percentile"] < held[OURS]
    assert 0.86 <= coverage.difference[OURS][:, 0, -1].mean() <= 1
    assert coverage.excess[:, 0].mean() > 0.1
    assert table([setting], [coverage]).count("\n") > 8


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS[2:4], ids=["alike", "unlike"])
def test_95_percent_intervals_hold_the_true_value_in_93_to_97_percent_of_sets(setting):
    """Two models on 600 sets: 1,200 intervals, of which the share is known to 0.6 %."""
    coverage = cover(setting, sets=600, resamples=200)
    single = coverage.models[OURS][..., -1].mean((0, 1))
    paired = coverage.difference[OURS][..., -1].mean(0)
    for share in (*single, *paired):
        assert 0.93 <= share <= 0.97
    assert (coverage.models["percentile"][:, :, 0, -1].mean(0) < 0.93).all()
