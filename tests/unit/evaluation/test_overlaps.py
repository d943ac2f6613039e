"""How well boxes fit."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.evaluation.coco import UNDEFINED, CocoEvaluator
from detrkit.evaluation.overlaps import overlaps
from detrkit.types import ImageDetections

from .scenes import scene


def test_mean_and_histogram_are_those_of_the_boxes_that_found_an_object():
    found = [("a", 0.9, 10), ("a", 0.8, 20), ("b", 0.7, 2000), ("b", 0.6, 3050), ("a", 0.5, 9000)]
    fit = overlaps(scene([("a", 0), ("b", 2000), ("b", 3000)], found, classes="abc").matches())
    assert fit.mean == pytest.approx((90 / 110 + 1) / 2)
    assert fit.per_class.tolist() == pytest.approx([90 / 110, 1, UNDEFINED])
    assert len(fit.histogram) == 20
    assert np.flatnonzero(fit.histogram).tolist() == [12, 19]  # 0.8 to 0.825, and 1 itself in the last
    assert fit.edges[[0, 12, 20]].tolist() == pytest.approx([0.5, 0.8, 1])


def test_sizes_are_those_of_the_annotated_area():
    sides = {"small": 20, "medium": 50, "large": 200}
    content = {
        "images": [{"id": 1, "height": 1000, "width": 1000}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [300 * i, 0, side, side], "area": side**2}
            for i, side in enumerate(sides.values())
        ],
    }
    evaluator = CocoEvaluator(content)
    shares = {"small": 0.6, "medium": 0.8, "large": 0.9}
    corners = zip(sides.values(), shares.values(), strict=True)
    boxes = [[300 * i, 0, 300 * i + side * share, side] for i, (side, share) in enumerate(corners)]
    evaluator.add(
        1, ImageDetections(np.array(boxes, np.float32), np.array([0.9, 0.8, 0.7]), np.zeros(3, np.int64))
    )
    fit = overlaps(evaluator.matches())
    assert fit.by_size == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize("missing", ["objects", "detections"])
def test_where_nothing_was_found_nothing_is_defined(missing):
    objects, found = ([], [("a", 0.9, 0)]) if missing == "objects" else ([("a", 0)], [])
    fit = overlaps(scene(objects, found).matches())
    assert fit.mean == UNDEFINED
    assert fit.per_class.tolist() == [UNDEFINED] * 2
    assert set(fit.by_size.values()) == {UNDEFINED}
    assert fit.histogram.sum() == 0
