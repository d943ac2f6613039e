"""Planted causes are named first; where nothing is planted, nothing is claimed, even if images differ."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.evaluation.evaluator import read_ground_truth
from detrkit.evaluation.failures.causes import Question, find_causes
from detrkit.evaluation.failures.properties import Property, at_border
from detrkit.evaluation.matching import Found
from detrkit.evaluation.truth import CocoTruth

from .cases import failures_of, generated_truth, jittered, near_perfect_detector, truth_of

QUINTILES = ("lowest", "low", "middle", "high", "highest")


def blind_to(truth: CocoTruth, hidden: np.ndarray, seed: int = 0, misses: float = 0.6) -> Found:
    """A detector that misses most of some objects, and a few of the others."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(~truth.iscrowd)
    rows = rows[rng.random(len(rows)) < np.where(hidden[rows], 1 - misses, 0.94)]
    boxes = jittered(rng, truth.boxes_xywh[rows], 0.02)
    return Found(truth.image_rows[rows], truth.class_ids[rows], rng.uniform(0.6, 0.95, len(rows)), boxes)


def property_of(values: np.ndarray, name: str = "value") -> Property:
    bins = np.searchsorted(np.quantile(values, (0.2, 0.4, 0.6, 0.8)), values)
    return Property(name, bins, QUINTILES)


def causes_of(failed: np.ndarray, images: np.ndarray, *properties: Property):
    return find_causes([Question("missed objects", failed, images, properties)])


def test_missing_what_the_border_cuts_is_named_first(shared_data):
    truth = read_ground_truth(shared_data / "coco_mini/annotations/instances_train2017.json")
    border = at_border(truth, truth.image_rows, truth.boxes_xywh)
    first, *others = failures_of(truth, blind_to(truth, border)).causes
    assert (first.name, first.target, first.bins[first.worst].label) == (
        "truncation",
        "missed objects",
        "cut by the border",
    )
    assert 1 < first.low < 10 < first.high  # 60 % missed against 6 %
    assert first.explained_by is None
    # Large objects are cut more often; that is all there is to their size.
    assert all(other.explained_by == "truncation" for other in others if other.target == "missed objects")
    assert first.sentence().startswith("Truncation, cut by the border: 6")


@pytest.mark.parametrize(
    ("name", "worst"), [("size", "under"), ("width / height", "and more"), ("near objects", "near")]
)
def test_planted_causes_of_other_kinds_are_named_first(name, worst):
    truth = generated_truth(1, images=300)
    width, height = truth.boxes_xywh[:, 2], truth.boxes_xywh[:, 3]
    number = np.bincount(truth.image_rows)[truth.image_rows]
    hidden = {
        "size": np.sqrt(width * height) < 60,
        "width / height": width / height > 1.8,
        "near objects": number >= 5,
    }[name]
    first = failures_of(truth, blind_to(truth, hidden)).causes[0]
    assert (first.name, first.target) == (name, "missed objects")
    assert worst in first.bins[first.worst].label
    assert first.low > 1


def test_bad_images_are_no_cause_for_what_their_objects_share():
    """Counted object by object, many a try would claim a cause here."""
    rng = np.random.default_rng(0)
    claimed = naive = 0
    for _ in range(60):
        images = np.repeat(np.arange(100), 8)
        failed = rng.random(800) < rng.beta(0.5, 2, 100)[images]
        entries = [property_of(rng.normal(size=100)[images], str(number)) for number in range(6)]
        claimed += bool(causes_of(failed, images, *entries))
        naive += bool(causes_of(failed, np.arange(800), *entries))
    assert claimed <= 6
    assert naive > 20


def test_the_interval_holds_the_true_ratio_in_95_of_100_cases():
    rng = np.random.default_rng(2)
    held = total = 0
    for _ in range(100):
        images = np.repeat(np.arange(150), 6)
        entry = property_of(rng.normal(size=150)[images] + rng.normal(size=900))
        chance = np.where(entry.bins == 4, 0.5, 0.2)
        failed = rng.random(900) < np.clip(chance + rng.normal(0, 0.1, 150)[images], 0, 1)
        for cause in causes_of(failed, images, entry):
            total += 1
            held += cause.worst == 4 and cause.low < 2.5 < cause.high
    assert total > 95
    assert held / total > 0.93


def test_what_only_goes_along_names_the_stronger_cause():
    rng = np.random.default_rng(3)
    images = np.repeat(np.arange(300), 5)
    reason = rng.integers(0, 2, 1500)
    along = np.where(rng.random(1500) < 0.85, reason, rng.integers(0, 2, 1500))
    failed = rng.random(1500) < np.where(reason == 1, 0.6, 0.1)
    labels = ("no", "yes")
    first, second = causes_of(failed, images, Property("along", along, labels), Property("reason", reason, labels))
    assert (first.name, first.explained_by) == ("reason", None)
    assert (second.name, second.explained_by) == ("along", "reason")
    assert first.ratio == pytest.approx(failed[reason == 1].mean() / failed[reason == 0].mean(), rel=0.02)


def test_a_difference_too_small_to_matter_is_not_claimed():
    rng = np.random.default_rng(4)
    images = np.repeat(np.arange(5_000), 4)
    entry = Property("value", rng.integers(0, 2, 20_000), ("no", "yes"))
    assert causes_of(rng.random(20_000) < np.where(entry.bins == 1, 0.13, 0.10), images, entry) == []
    assert causes_of(rng.random(20_000) < np.where(entry.bins == 1, 0.17, 0.10), images, entry)


@pytest.mark.parametrize("rare", [9, 15])  # too few objects, and enough of too few images
def test_bins_of_few_objects_or_images_are_left_out(rare):
    rng = np.random.default_rng(5)
    images = np.repeat(np.arange(200), 5)
    bins = rng.integers(0, 2, 1000)
    bins[:rare] = 2
    failed = rng.random(1000) < np.choose(bins, (0.1, 0.5, 1.0))
    (cause,) = causes_of(failed, images, Property("value", bins, ("no", "yes", "rare")))
    assert [entry.label for entry in cause.bins] == ["no", "yes"]
    assert cause.worst == 1


@pytest.mark.parametrize("failed", [True, False])
def test_where_all_or_nothing_fails_there_is_no_cause(failed):
    truth = generated_truth(7, images=60)
    found = near_perfect_detector(truth)
    assert failures_of(truth, found, score=2.0 if failed else 0.5).causes == ()
    empty = truth_of()
    assert failures_of(empty, found.select(np.zeros(len(found), dtype=bool))).causes == ()
