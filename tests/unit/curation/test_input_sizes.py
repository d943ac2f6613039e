"""How large objects are at the model's input."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.config import TransformConfig
from detrkit.curation.input_sizes import eval_inputs, train_inputs
from tests.unit.data.factory import make_index

PLAIN = TransformConfig(recipe="resize", flip=0.0, eval_size=200, max_size=1000)


def test_evaluation_scales_every_object_and_loses_none():
    index = make_index([[(0, (0, 0, 10, 20)), (1, (0, 0, 4, 2))], []], [(100, 200), (50, 50)], crowd=[0, 0])
    found = eval_inputs(index, PLAIN)
    assert found.short_sides.tolist() == [20, 4]
    assert (found.images, found.objects, found.lost, found.small_objects) == (2, 2, 0, 2)
    assert found.share_below(8) == 0.5
    assert found.share_below(20) == 0.5


def test_crowd_regions_are_not_followed():
    index = make_index([[(0, (0, 0, 10, 20)), (1, (0, 0, 4, 2))]], crowd=[True, False])
    assert eval_inputs(index, PLAIN).short_sides.tolist() == [4]
    assert train_inputs(index, PLAIN).short_sides.tolist() == [4]
    assert train_inputs(index, PLAIN).objects == 1


def test_training_without_crops_agrees_with_the_formula():
    random = np.random.default_rng(0)
    corners = random.uniform(0, 40, (30, 2))
    boxes = np.concatenate([corners, corners + random.uniform(1, 40, (30, 2))], axis=1)
    index = make_index([[(0, tuple(box))] for box in boxes], [(90 + row, 130) for row in range(30)])
    trained, evaluated = train_inputs(index, PLAIN), eval_inputs(index, PLAIN)
    np.testing.assert_allclose(trained.short_sides, evaluated.short_sides, rtol=1e-3)
    assert trained.lost == trained.cut == 0


def test_crops_lose_and_cut_objects_of_known_places():
    config = TransformConfig(flip=0, crop=1, crop_scales=(100,), crop_range=(50, 50), scales=(100,), max_size=1000)
    everywhere = [(0, (x, y, x + 4, y + 4)) for x in range(0, 100, 5) for y in range(0, 100, 5)]
    index = make_index([everywhere] * 5, [(100, 100)] * 5)
    found = train_inputs(index, config)
    assert found.objects == found.small_objects == 2000
    assert 0.6 < found.lost / found.objects < 0.8  # a quarter of the area is left, and what reaches into it
    assert found.small_lost == found.lost
    assert 0 < found.cut < 0.1 * found.objects
    assert len(found.short_sides) == found.objects - found.lost
    assert np.median(found.short_sides) == pytest.approx(8, rel=0.01)


def test_no_objects_give_empty_numbers():
    index = make_index([[], []])
    for found in (train_inputs(index, PLAIN), eval_inputs(index, PLAIN)):
        assert found.objects == 0
        assert found.share_below(8) == 0
        assert found.to_dict()["short_side"]["median"] == 0
