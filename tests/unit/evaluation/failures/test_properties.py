"""Properties of boxes, from annotations and pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from detrkit.evaluation.failures.properties import (
    NearPairs,
    at_border,
    box_properties,
    crowding_properties,
    measure_pixels,
    near_pairs,
    pixel_properties,
)

from .cases import generated_truth, truth_of


def expected_pairs(image_rows: np.ndarray, boxes: np.ndarray) -> set[tuple[int, int]]:
    """The definition, pair by pair."""
    pairs = set()
    for first in range(len(boxes)):
        for second in range(first + 1, len(boxes)):
            grown = [(b[:2] - 0.25 * b[2:], b[:2] + 1.25 * b[2:]) for b in (boxes[first], boxes[second])]
            touch = all(grown[0][0][k] < grown[1][1][k] and grown[1][0][k] < grown[0][1][k] for k in (0, 1))
            if image_rows[first] == image_rows[second] and touch:
                pairs.add((first, second))
    return pairs


@pytest.mark.parametrize("most", [500_000, 7])
def test_near_pairs_are_those_of_the_definition(most, monkeypatch):
    monkeypatch.setattr("detrkit.evaluation.matching._MOST_PAIRS", most)
    truth = generated_truth(0, images=25)
    near = near_pairs(truth.image_rows, truth.boxes_xywh)
    pairs = set(zip(near.first.tolist(), near.second.tolist(), strict=True))
    assert pairs == expected_pairs(truth.image_rows, truth.boxes_xywh)
    assert len(pairs) == len(near.first) > 20


def test_boxes_that_touch_an_edge_are_cut():
    corners = [(0.4, 50.0), (50.0, 460.0), (619.0, 50.0), (50.0, 50.0)]
    truth = truth_of(*((0, 0, (*corner, 20.0, 20.0)) for corner in corners))
    assert at_border(truth, truth.image_rows, truth.boxes_xywh).tolist() == [True, True, True, False]


def test_bins_hold_about_equally_many_and_their_labels_say_their_limits():
    truth = generated_truth(1)
    entries = box_properties(
        truth, truth.image_rows, truth.class_ids, truth.boxes_xywh, np.ones(len(truth.class_ids), bool)
    )
    by_name = {entry.name: entry for entry in entries}
    assert list(by_name) == ["size", "width / height", "truncation", "class frequency"]
    sizes = by_name["size"]
    counts = np.bincount(sizes.bins)
    assert len(counts) == len(sizes.labels) == 5
    assert counts.min() > 0.18 * len(truth.class_ids)
    sides = np.sqrt(truth.boxes_xywh[:, 2] * truth.boxes_xywh[:, 3])
    assert sizes.labels[0] == f"under {float(f'{np.quantile(sides, 0.2):.3g}'):g} px"
    assert sides[sizes.bins == 0].max() < sides[sizes.bins == 1].min()


def test_crowding_counts_neighbours_and_the_greatest_overlap_with_one():
    near = NearPairs(np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([0.05, 0.4, 0.0]))
    number, overlap = crowding_properties(near, np.arange(4), np.array([True, True, True, True]))
    assert [number.labels[row] for row in number.bins] == ["1 or 2 near"] * 3 + ["none near"]
    labels = [overlap.labels[row] for row in overlap.bins]
    assert labels == ["IoU over 0.3", "IoU under 0.1", "IoU over 0.3", "no overlap"]
    number, overlap = crowding_properties(near, np.arange(4), np.array([True, True, False, True]))
    assert number.bins.tolist() == [1, 1, 0, 0]
    assert overlap.bins.tolist() == [1, 1, 0, 0]


def test_brightness_contrast_and_sharpness_of_a_box():
    rng = np.random.default_rng(0)
    image = np.full((60, 90, 3), 40, dtype=np.uint8)
    image[:, 30:60] = rng.integers(0, 256, (60, 30, 1), dtype=np.uint8)
    blurred = Image.fromarray(image[:, 30:60]).filter(ImageFilter.GaussianBlur(2))
    image[:, 60:] = np.asarray(blurred)
    boxes = np.array(
        [(2, 2, 20, 20), (32, 2, 26, 50), (62, 2, 26, 50), (-30, -30, 31, 31), (85, 2, 500, 20)], float
    )
    flat, noisy, soft, outside, cut = measure_pixels(image, boxes)
    assert flat == pytest.approx([40, 0, 0], abs=0.01)
    gray = image[2:52, 32:58, 0].astype(float)
    assert noisy[:2] == pytest.approx([gray.mean(), gray.std()], rel=1e-4)
    assert noisy[2] > soft[2] + 1.5 > flat[2]
    assert np.isnan(outside).all()
    assert np.isfinite(cut).all()


def test_boxes_that_were_not_measured_are_in_no_bin():
    values = np.full((50, 3), np.nan)
    values[:40] = np.random.default_rng(0).uniform(0, 255, (40, 3))
    for entry in pixel_properties(values):
        assert entry.sampled
        assert (entry.bins[40:] == -1).all()
        assert np.bincount(entry.bins[:40]).tolist() == [8] * 5
    assert all((entry.bins == -1).all() for entry in pixel_properties(np.full((5, 3), np.nan)))
    assert all(len(entry.bins) == 0 for entry in pixel_properties(np.zeros((0, 3))))
