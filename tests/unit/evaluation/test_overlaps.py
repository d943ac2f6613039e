"""How well boxes fit."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.evaluation.coco import UNDEFINED
from detrkit.evaluation.overlaps import overlaps

from .scenes import scene
from .test_coco import evaluate, random_case
from .test_error_types import plain_iou


def test_mean_and_histogram_are_those_of_the_boxes_that_found_an_object():
    found = [("a", 0.9, 10), ("a", 0.8, 20), ("b", 0.7, 2000), ("b", 0.6, 3050), ("a", 0.5, 9000)]
    fit = overlaps(scene([("a", 0), ("b", 2000), ("b", 3000)], found, classes="abc").matches())
    assert fit.mean == pytest.approx((90 / 110 + 1) / 2)
    assert fit.per_class.tolist() == pytest.approx([90 / 110, 1, UNDEFINED])
    assert len(fit.histogram) == 20
    assert np.flatnonzero(fit.histogram).tolist() == [12, 19]  # 0.8 to 0.825, and 1 itself in the last
    assert fit.edges[[0, 12, 20]].tolist() == pytest.approx([0.5, 0.8, 1])


def test_histogram_and_mean_by_size_are_those_of_a_plain_computation():
    matches = evaluate(*random_case(40)).matches()
    fit = overlaps(matches)
    rows = np.flatnonzero(matches.correct[0])
    objects = matches.matched[0, rows]
    boxes = zip(matches.found.boxes_xywh[rows], matches.truth.boxes_xywh[objects], strict=True)
    expected = np.array([plain_iou(*pair) for pair in boxes])
    assert len(rows) > 50
    np.testing.assert_array_equal(fit.histogram, np.histogram(np.minimum(expected, 1), fit.edges)[0])
    sizes = np.digitize(matches.truth.area[objects], [32**2, 96**2])
    means = {name: expected[sizes == size].mean() for size, name in enumerate(("small", "medium", "large"))}
    assert fit.by_size == pytest.approx(means)


@pytest.mark.parametrize("missing", ["objects", "detections"])
def test_where_nothing_was_found_nothing_is_defined(missing):
    objects, found = ([], [("a", 0.9, 0)]) if missing == "objects" else ([("a", 0)], [])
    fit = overlaps(scene(objects, found).matches())
    assert fit.mean == UNDEFINED
    assert fit.per_class.tolist() == [UNDEFINED] * 2
    assert set(fit.by_size.values()) == {UNDEFINED}
    assert fit.histogram.sum() == 0
