"""Dividing images with their classes in proportion."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.curation.subsets import class_shares, parse_shares, sample_rows, split_rows
from detrkit.errors import DataError, UsageError
from tests.unit.data.factory import labelled

SHARES = {"train": 0.7, "val": 0.2, "test": 0.1}


def long_tailed(images: int = 300, classes: int = 12, seed: int = 0):
    """Images of several classes each, the rarest class in few of them; a tenth without objects."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, classes + 1)
    counts = random.poisson(3, images) * (random.random(images) > 0.1)
    return labelled([random.choice(classes, count, p=weights / weights.sum()) for count in counts], classes)


def deviation(index, parts) -> float:
    asked = np.array(list(SHARES.values()))[:, None]
    return float(np.nanmean(np.abs(class_shares(index, parts) - asked)))


def all_rows(parts) -> list[int]:
    return sorted(np.concatenate(list(parts.values())).tolist())


@pytest.mark.parametrize("seed", range(2))
def test_every_image_is_in_one_part_and_classes_are_closer_to_the_shares_than_at_random(seed: int):
    index = long_tailed(seed=seed)
    parts = split_rows(index, SHARES, seed)
    assert all_rows(parts) == list(range(300))
    ends = np.cumsum([len(rows) for rows in parts.values()])[:-1]
    random = np.random.default_rng(seed)
    at_random = [deviation(index, np.split(random.permutation(300), ends)) for _ in range(20)]
    assert deviation(index, parts.values()) < 0.5 * min(at_random)
    assert [len(rows) for rows in parts.values()] == pytest.approx([210, 60, 30], abs=6)


def test_groups_stay_together_and_classes_in_proportion():
    index = long_tailed()
    random = np.random.default_rng(1)
    groups = np.split(random.permutation(300)[:200], 40)
    parts = split_rows(index, SHARES, 0, groups)
    assert all_rows(parts) == list(range(300))
    part_of = np.zeros(300, dtype=np.int64)
    for number, rows in enumerate(parts.values()):
        part_of[rows] = number
    assert all(len(set(part_of[group])) == 1 for group in groups)
    assert deviation(index, parts.values()) < 0.05


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_no_part_of_a_tiny_set_is_empty(count: int):
    for images in ([[0]] * count, [[number % 3] for number in range(count)], [[]] * count):
        parts = split_rows(labelled(images), SHARES)
        assert all_rows(parts) == list(range(count))
        assert min(len(rows) for rows in parts.values()) >= 1


def test_one_image_is_one_part_and_no_more():
    assert split_rows(labelled([[0]]), {"train": 1.0})["train"].tolist() == [0]
    with pytest.raises(DataError, match=r"1 images cannot be divided into 3 parts \(train, val, test\)"):
        split_rows(labelled([[0]]), SHARES)
    with pytest.raises(DataError, match="9 images in 1 groups that stay together"):
        split_rows(labelled([[0]] * 9), SHARES, 0, [np.arange(9)])


def test_a_sample_has_so_many_images_all_classes_and_their_proportion():
    index = long_tailed(1000)
    rows = sample_rows(index, 100, seed=3)
    assert len(rows) == len(set(rows.tolist())) == 100
    assert np.array_equal(rows, sample_rows(index, 100, seed=3))
    assert not np.array_equal(rows, sample_rows(index, 100, seed=4))
    shares = class_shares(index, [rows])[0]
    assert (shares > 0).all()
    assert shares[:6] == pytest.approx([0.1] * 6, abs=0.03)
    counts = np.diff(index.offsets)
    assert (counts[rows] == 0).mean() == pytest.approx((counts == 0).mean(), abs=0.04)


def test_a_sample_of_more_than_all_is_all_and_of_none_is_refused():
    index = labelled([[0], [1], []])
    assert sample_rows(index, 99).tolist() == [0, 1, 2]
    assert sample_rows(index, 1).shape == (1,)
    with pytest.raises(UsageError, match="asked for 0 images"):
        sample_rows(index, 0)


def test_shares_are_read_and_checked():
    assert parse_shares("train=0.8, val=.1,test=0.1") == {"train": 0.8, "val": 0.1, "test": 0.1}
    assert parse_shares("all=1") == {"all": 1.0}
    for text, problem in (
        ("train=0.8,val=0.1", "sum to 0.9"),
        ("train=1,val=0", "above 0"),
        ("train", "not NAME=SHARE"),
        ("../train=1", "not NAME=SHARE"),
        ("a=-1,b=2", "not NAME=SHARE"),
        ("a=0.5,a=0.5", "named twice"),
        ("a=nan", "not NAME=SHARE"),
        ("", "not NAME=SHARE"),
    ):
        with pytest.raises(UsageError, match=problem):
            parse_shares(text)


def test_groups_that_share_an_image_are_one():
    index = labelled([[0]] * 20)
    groups = [np.array([5, 9]), np.array([1, 5]), np.array([9, 19]), np.array([0, 1])]
    parts = split_rows(index, {"train": 0.5, "val": 0.5}, 0, groups)
    holding = [name for name, rows in parts.items() if {0, 1, 5, 9, 19} & set(rows.tolist())]
    assert len(holding) == 1
    assert [len(rows) for rows in parts.values()] == [10, 10]
