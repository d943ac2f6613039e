"""Thresholds: what they keep, and their file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detrkit.classes import ClassMap
from detrkit.errors import DataError
from detrkit.threshold_file import (
    ClassThreshold,
    ScoreScale,
    Thresholds,
    logits_of,
    read_thresholds,
    write_thresholds,
)

CLASSES = ClassMap(("cat", "dog"), (3, 7))
THRESHOLDS = Thresholds(
    (
        ClassThreshold("cat", 3, 0.6, objects=40, precision=0.9, recall=0.5),
        ClassThreshold("dog", 7, 0.25, objects=4, precision=None, recall=0.0, own=False, reached=False),
    ),
    default=0.25,
    criterion="precision",
    wished=0.9,
    scale=ScoreScale(1.5, -0.25),
    data="pets",
    split="val",
    images=30,
    objects=44,
)


def test_each_class_is_kept_from_its_own_score_on():
    plain = Thresholds(THRESHOLDS.classes, 0.25)
    scores = np.array([0.6, 0.59, 0.25, 0.24], dtype=np.float32)
    assert plain.apply(scores, np.array([0, 0, 1, 1])).tolist() == [True, False, True, False]
    assert plain.apply(scores[:0], np.zeros(0, np.int64)).tolist() == []
    np.testing.assert_array_equal(plain.calibrated(scores), scores)


def test_thresholds_are_compared_with_calibrated_scores():
    scores = np.array([0.7, 0.8, 0.9])
    shown = THRESHOLDS.calibrated(scores)
    np.testing.assert_allclose(shown, 1 / (1 + np.exp(-(np.log(scores / (1 - scores)) / 1.5 - 0.25))))
    assert (
        THRESHOLDS.apply(scores, np.zeros(3, np.int64)).tolist() == (shown >= 0.6).tolist() == [False, True, True]
    )


def test_calibration_keeps_the_order_and_stays_within_0_and_1():
    scores = np.array([0, 1e-30, 1e-6, 0.3, 0.5, 0.99999994, 1], dtype=np.float32)
    for scale in (ScoreScale(3, 1), ScoreScale(0.9, -2)):
        shown = scale(scores)
        assert (np.diff(shown) > 0).all()
        assert shown.min() >= 0
        assert shown.max() <= 1
    assert np.isfinite(logits_of(scores)).all()
    np.testing.assert_allclose(ScoreScale(1, 1e-12)(scores[2:6]), scores[2:6], rtol=1e-6)


def test_a_file_gives_back_what_was_written(tmp_path):
    write_thresholds(tmp_path / "thresholds.json", THRESHOLDS)
    assert read_thresholds(tmp_path / "thresholds.json", CLASSES) == THRESHOLDS
    content = json.loads((tmp_path / "thresholds.json").read_text())
    assert content["version"] == 1
    assert content["temperature"] == 1.5
    assert [entry["score"] for entry in content["classes"]] == [0.6, 0.25]


def test_classes_are_found_by_name_and_new_ones_get_the_default():
    other = ClassMap(("bird", "dog", "cat"), (1, 2, 3))
    moved = THRESHOLDS.for_classes(other)
    assert [(entry.name, entry.category_id, entry.score, entry.own) for entry in moved.classes] == [
        ("bird", 1, 0.25, False),
        ("dog", 2, 0.25, False),
        ("cat", 3, 0.6, True),
    ]


def test_of_classes_of_one_name_the_category_decides():
    twins = ClassMap(("cat", "cat"), (1, 2))
    entries = (ClassThreshold("cat", 2, 0.7), ClassThreshold("cat", 1, 0.3))
    moved = Thresholds(entries, 0.5).for_classes(twins)
    assert [entry.score for entry in moved.classes] == [0.3, 0.7]


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"version": 2}, ("version is 2", "expected 1")),
        ({"criterion": "luck"}, ("criterion is 'luck'",)),
        ({"default": "0.5"}, ("default is '0.5'", "float")),
        ({"default": True}, ("default is True", "float")),
        ({"default": 1.5}, ("default is 1.5", "<= 1")),
        ({"wished": -0.1}, ("wished is -0.1", ">= 0")),
        ({"temperature": 0}, ("temperature is 0", "> 0")),
        ({"data": 3}, ("data is 3", "str")),
        ({"classes": {}}, ("classes: ", "array")),
        ({"classes": [1]}, ("classes[0] is 1", "object")),
    ],
)
def test_what_is_wrong_with_a_file_is_said(change, facts, tmp_path):
    file = tmp_path / "thresholds.json"
    file.write_text(json.dumps(THRESHOLDS.to_dict() | change))
    with pytest.raises(DataError) as caught:
        read_thresholds(file, CLASSES)
    assert all(fact in str(caught.value) for fact in (*facts, str(file), "detrkit thresholds")), caught.value


@pytest.mark.parametrize(("key", "value"), [("score", 1.01), ("score", None), ("category_id", True), ("own", 1)])
def test_a_wrong_or_missing_value_of_a_class_is_named(key, value):
    content = THRESHOLDS.to_dict()
    content["classes"][1][key] = value
    with pytest.raises(DataError) as caught:
        Thresholds.from_dict(content)
    assert f"classes[1].{key} is {value}" in str(caught.value)
    del content["classes"][1][key]
    with pytest.raises(DataError, match=rf"classes\[1\].*(missing.*{key}|{key} is missing)"):
        Thresholds.from_dict(content)


def test_a_file_that_is_something_else_or_lacks_a_value_is_refused(tmp_path):
    file = tmp_path / "thresholds.json"
    with pytest.raises(DataError, match="cannot read thresholds"):
        read_thresholds(file, CLASSES)
    cases = [
        ("{", "not valid JSON"),
        ('{"default": NaN}', "not valid JSON"),
        ("[]", "got a list, expected an object"),
    ]
    for key in THRESHOLDS.to_dict().keys() - {"panoptic_score"}:
        content = {name: value for name, value in THRESHOLDS.to_dict().items() if name != key}
        cases.append((json.dumps(content), f"missing.*{key}|{key}.* (missing|None)"))
    for text, message in cases:
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_thresholds(file, CLASSES)


def test_a_file_nested_beyond_all_reason_is_refused(tmp_path):
    (tmp_path / "t.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"t\.json is not valid JSON"):
        read_thresholds(tmp_path / "t.json", ClassMap(("a",), (1,)))
