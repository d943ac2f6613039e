"""How many images fit at once: tried on the worst batch, on a copy of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from detrkit.classes import ClassMap
from detrkit.config import TransformConfig, update_config
from detrkit.data.index import CocoIndex, pack_names
from detrkit.distributed import make_fabric
from detrkit.hardware import PeakMemory
from detrkit.training import micro_batch as trial
from detrkit.training.micro_batch import find_micro_batch, worst_case


def make_index(sizes_hw: list[tuple[int, int]], objects: list[int], crowds: int = 0) -> CocoIndex:
    names, offsets = pack_names([f"{row}.jpg" for row in range(len(sizes_hw))])
    total = sum(objects)
    return CocoIndex(
        image_ids=np.arange(len(sizes_hw)),
        name_bytes=names,
        name_offsets=offsets,
        sizes_hw=np.array(sizes_hw, dtype=np.int32).reshape(-1, 2),
        offsets=np.cumsum([0, *objects]),
        boxes_xyxy=np.tile([1.0, 1.0, 9.0, 9.0], (total, 1)),
        labels=np.zeros(total, dtype=np.int64),
        area=np.full(total, 64.0),
        iscrowd=np.arange(total) < crowds,
        annotation_ids=np.arange(total),
        class_map=ClassMap(("a", "b", "c"), (1, 2, 3)),
    )


INDEX = make_index([(480, 640), (640, 480), (480, 960)], [3, 5, 1], crowds=1)


def test_the_worst_batch_has_lying_and_upright_images_at_the_largest_scale():
    found = worst_case(TransformConfig(crop=0.0), INDEX)
    assert (found.tallest_hw, found.widest_hw) == ((1066, 800), (666, 1333))
    assert found.single_hw == (666, 1333)
    assert found.objects == 5
    assert found.padded_hw(1) == (666, 1333)
    assert found.padded_hw(4) == (1066, 1333)
    assert found.sizes(3) == [(1066, 800), (666, 1333), (1066, 800)]


@pytest.mark.parametrize(
    ("settings", "padded"),
    [
        ({"multi_scale": False, "eval_size": 400, "max_size": 600}, (533, 600)),
        ({"crop": 0.5}, (1250, 1333)),
        ({"crop": 0.5, "crop_range": (384, 1000)}, (1333, 1333)),
        ({"crop": 0.0, "mosaic": 0.5}, (1333, 1333)),
        ({"multi_scale": False, "eval_size": 400, "iou_crop": 0.8}, (800, 800)),
    ],
)
def test_augmentation_that_changes_shapes_counts(settings, padded):
    assert worst_case(TransformConfig(**settings), INDEX).padded_hw(2) == padded


SMALL = {"transforms": {"multi_scale": False, "eval_size": 32, "max_size": 64}}


def find(toy: Any, config: Any, said: list[str] | None = None) -> Any:
    said = [] if said is None else said
    return find_micro_batch(toy.setup(config), INDEX, make_fabric(config.train), said.append)


@pytest.mark.parametrize(
    ("images", "batch_size", "fits"),
    [(1, 8, 1), (3, 8, 2), (6, 6, 6), pytest.param(100, 8, 8, marks=pytest.mark.slow)],
)
def test_the_largest_power_of_two_that_fits_is_found(toy, make_config, images, batch_size, fits):
    budget = images * 42 * 64
    changes = {**SMALL, "train": {"batch_size": batch_size, "pixel_budget": budget, "ema_decay": 0.9}}
    said: list[str] = []
    found = find(toy, update_config(make_config(), changes), said)
    assert found.images == fits
    assert said == [
        "trying how many images fit into memory at once; worst case: 42 x 64 pixels with 5 objects an image"
    ]
    if fits < batch_size:
        assert f"{fits} images fit at once" in str(found)
        assert f"a batch of {batch_size} goes in pieces of {fits}, with the same gradient" in str(found)
        assert f"train.pixel_budget is {budget:,}" in str(found)
    else:
        assert str(found).startswith(f"a batch of {batch_size} fits at once")


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_model_and_random_numbers_are_untouched(toy, make_config, float16_fabric, precision):
    config = update_config(make_config(precision=precision, ema_decay=0.9, clip_norm=0.1), SMALL)
    model = toy.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fabric = float16_fabric if precision == "16" else make_fabric(config.train)
    find_micro_batch(toy.setup(config, model), INDEX, fabric, lambda _text: None)
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    if precision == "16":
        assert not fabric.strategy.precision.scaler.state_dict()["_growth_tracker"]


def test_a_host_that_would_fill_up_is_not_tried(toy, make_config, monkeypatch):
    """Measured as if each image took 100 MiB and the model 50; 1,000 MiB are free, of which 800 are taken."""
    tried = []

    class Pretended(trial._Trial):
        def measure(self, worst, count, memory):
            tried.append(count)
            return (50 + 100 * count) * 2**20

    held = iter([0, 50 * 2**20])
    monkeypatch.setattr(trial, "_Trial", Pretended)
    monkeypatch.setattr(PeakMemory, "now", lambda _memory: next(held))
    monkeypatch.setattr(trial, "available_bytes", lambda _device: 1000 * 2**20)
    found = find(toy, update_config(make_config(batch_size=64), SMALL))
    assert tried == [1, 2, 4]
    assert found.images == 4
    assert "8 would take about 0.83 GiB, 0.78 GiB are free" in str(found)
