"""A bad step is repeated bit for bit, and the place where it began is found."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from detrkit.checkpoint import load_checkpoint, save_checkpoint
from detrkit.config import update_config
from detrkit.data.loader import collate
from detrkit.errors import CheckpointError
from detrkit.training.nonfinite.diagnosis import Diagnosis
from detrkit.training.nonfinite.replay import find_step, read_step, replay_step
from detrkit.training.nonfinite.saved_step import SavedBatch
from tests.unit.data.scenes import random_scene
from tests.unit.training.faults import Faulty, SpoilBatch, nan_box, nan_pixels, nan_weight, thin_box

COLOURS = {"transforms.on_device": True, "transforms.photometric": 0.5}


def replayed(toy: Any, config: Any, model: nn.Module) -> Diagnosis:
    torch.rand(3)  # random numbers drawn meanwhile change nothing
    found = replay_step(read_step(find_step(toy.run_dir)), model, toy.criterion(config))
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.is_equal, found.values
    assert "Repeated bit for bit." in found.lines()
    return found


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (nan_box, "has a box cxcywh (nan, "),
        (thin_box, ", 0, 0.3), its object number"),
        (nan_pixels, "the pixels of"),
    ],
)
def test_a_damaged_batch_is_repeated_and_named(toy, make_config, make_loader, spoil, cause):
    config = make_config(epochs=1)
    toy.fit(config, loader=SpoilBatch(make_loader(12, 3), 3, spoil))
    found = replayed(toy, config, toy.model())
    assert (found.step, found.epoch, found.process) == (3, 1, 0)
    assert cause in found.cause
    assert len(found.image_ids) == 3


def test_a_saved_batch_keeps_its_masks():
    batch = collate([random_scene(seed, (20, 30), masks=True) for seed in (3, 4)])
    assert batch is not None
    assert batch.truth.masks is not None
    saved = msgspec.convert(msgspec.structs.asdict(SavedBatch.pack(batch)), SavedBatch)
    masks = saved.unpack().truth.masks
    assert masks is not None
    assert torch.equal(masks, batch.truth.masks)


def test_a_weight_is_named(toy, make_config, make_loader):
    config = make_config(epochs=1, max_bad_steps=9)
    model = toy.model()
    toy.fit(config, model=model, loader=SpoilBatch(make_loader(), 4, nan_weight(model, "layers.1.weight")))
    found = replayed(toy, config, toy.model())
    assert found.bad_weights == ("layers.1.weight",)
    assert found.cause == "the weight layers.1.weight is not finite before the step"
    assert found.forward is not None
    assert (found.forward.module, found.forward.kind) == ("layers.1", "Linear")
    assert found.forward.weights == ("weight",)
    assert ("class", 1) in found.bad_terms
    assert ("class", 0) not in found.bad_terms


def faulty_toy(toy: Any, fault: str, step: int, layer: int = 0) -> nn.Module:
    model = toy.model()
    model.layers[layer] = Faulty(model.layers[layer], fault, step)
    return model


def test_the_module_is_named_in_which_values_stop_being_finite(toy, make_config):
    config = make_config(epochs=1)
    model = faulty_toy(toy, "forward", 4)
    toy.fit(config, model=model)
    found = replayed(toy, config, model)
    assert found.forward is not None
    assert (found.forward.module, found.forward.kind) == ("layers.0", "Faulty")
    assert 0 < found.forward.entered < 100
    assert found.forward.bad == found.forward.values > 0


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "bf16"}, {"accumulate": 2, "batch_size": 4, "micro_batch": 3}]
)
def test_the_module_is_named_in_which_a_gradient_stops_being_finite(toy, make_config, make_loader, settings):
    """The losses are finite here, so that their bits tell whether dropout and augmentation are the same."""
    config = update_config(make_config(epochs=1, **settings), COLOURS)
    model = faulty_toy(toy, "backward", 3)
    toy.fit(config, model=model, loader=make_loader(24, 4))
    found = replayed(toy, config, model)
    assert math.isfinite(found.values["loss"].recorded)
    assert math.isnan(found.values["grad_norm"].recorded)
    assert found.forward is None
    assert found.backward is not None
    assert found.backward.module == "layers.0"
    assert found.backward.operation == "SqrtBackward0"


def test_other_dropout_would_be_seen(toy, make_config):
    config = make_config(epochs=1)
    model = faulty_toy(toy, "backward", 3)
    toy.fit(config, model=model)
    saved = msgspec.structs.replace(read_step(find_step(toy.run_dir)), process=1)
    found = replay_step(saved, model, toy.criterion(config))
    assert not found.is_equal
    assert any("NOT equal to the training" in line for line in found.lines())


def test_modules_that_rested_rest_again(toy, make_config):
    """Dropout in a frozen backbone is off, in the replay too."""
    config = make_config(epochs=1)
    model = faulty_toy(toy, "backward", 3)
    model.backbone.append(nn.Dropout(0.5))
    model.backbone.requires_grad_(False)
    toy.fit(config, model=model)
    assert "backbone.2" in read_step(find_step(toy.run_dir)).resting
    replayed(toy, config, model.train())


@pytest.fixture
def saved(toy: Any, make_config: Any, make_loader: Any) -> Path:
    toy.fit(make_config(epochs=1), loader=SpoilBatch(make_loader(), 3, nan_box))
    return find_step(toy.run_dir)


def test_a_damaged_file_is_refused(saved: Path, tmp_path: Path):
    cut = tmp_path / "cut.pt"
    cut.write_bytes(saved.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="cut off"):
        read_step(cut)
    with pytest.raises(CheckpointError, match="expected a saved step"):
        read_step(saved.parents[1] / "checkpoints" / "last.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"batches": [{}]},
        {"step": 0},
        {"micro_batch": 0},
        {"num_threads": 10**9},
        {"config": {"train": {"nonsense": 1}}},
        {"normalizers": (1.0,)},
        {"values": None},
    ],
)
def test_a_file_that_holds_what_no_step_can_be_is_refused(saved: Path, tmp_path: Path, change: dict[str, Any]):
    payload = load_checkpoint(saved)
    crafted = tmp_path / "crafted.pt"
    save_checkpoint(crafted, {**payload, **change})
    with pytest.raises(CheckpointError, match="cannot be used"):
        read_step(crafted)
