from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch

from detrkit.checkpoint import CheckpointStore, read_model
from detrkit.errors import CheckpointError, DataError, ImageError
from tests.unit.training.conftest import toy_loader

SCALER = {"growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0}
TIMED = ("images_per_s", "data_wait", "memory_gib", "seconds", "elapsed_s")


def records(run_dir: Path, *kinds: str) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in TIMED}
        for line in lines
        if line["kind"] in (kinds or ("step", "eval", "epoch"))
    ]


def same_state(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class StopAt:
    """A loader that sends this process a signal as it hands out batch number ``at`` of all, from 1."""

    def __init__(self, loader, at: int, number: int = signal.SIGINT):
        self.loader, self.at, self.number, self.count = loader, at, number, 0
        self.batch_sampler = loader.batch_sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), self.number)
            yield batch


def test_loss_falls_and_everything_is_written(toy, make_config):
    result = toy.fit(make_config(epochs=20))
    steps = records(toy.run_dir, "step")
    assert result.stopped == "finished"
    assert (result.steps, result.epochs, result.best) == (120, 20, 0.5)
    assert [step["step"] for step in steps] == list(range(2, 121, 2))
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    assert {"loss_class", "loss_l1", "loss_giou", "lr", "lr_backbone", "grad_norm", "epoch"} <= steps[0].keys()
    assert [line["epoch"] for line in records(toy.run_dir, "eval")] == list(range(1, 21))
    assert list(toy.run_dir.glob("events.out.tfevents.*"))
    assert read_model(toy.run_dir).class_map == toy.class_map


def test_a_changed_config_is_in_the_checkpoint_before_the_first_step(toy, make_config):
    toy.fit(make_config(epochs=1))
    saved = CheckpointStore(toy.run_dir).load_latest()

    class Broken(StopAt):
        def __iter__(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        toy.fit(make_config(epochs=4), loader=Broken(toy_loader(), at=1), resume=saved)
    again = CheckpointStore(toy.run_dir).load_latest()
    assert (again["config"]["train"]["epochs"], again["progress"]) == (4, saved["progress"])


def test_checkpoint_inside_an_epoch_after_some_minutes(toy, make_config, monkeypatch):
    saved = []
    monkeypatch.setattr(
        CheckpointStore, "save_last", lambda self, payload: saved.append(payload["progress"]["step"])
    )
    toy.fit(make_config(epochs=1, save_every_min=1e-9))
    assert saved == [1, 2, 3, 4, 5, 6, 6]


def test_float16_trains_and_lets_the_scale_find_its_level(toy, make_config, float16_fabric):
    toy.fabric = float16_fabric
    toy.fabric.strategy.precision.scaler.load_state_dict({**SCALER, "scale": 2.0**24})
    model = toy.model()
    result = toy.fit(make_config(precision="16", epochs=5), model=model)
    assert result.stopped == "finished"
    saved = CheckpointStore(toy.run_dir).load_latest()
    assert 2.0**5 < saved["scaler"]["scale"] < 2.0**20
    assert records(toy.run_dir, "step")[0]["grad_norm"] is None  # both steps overflowed
    assert saved["optimizer"]["state"][0]["step"] < result.steps
    assert not same_state(model.state_dict(), toy.model().state_dict())


@pytest.mark.parametrize("precision", ["bf16", "16"])
def test_mixed_precision_follows_float32(toy, tmp_path, make_config, precision, float16_fabric):
    toy.fit(make_config(epochs=6))
    # a scale low enough to skip no step
    float16_fabric.strategy.precision.scaler.load_state_dict({**SCALER, "scale": 2.0**8})
    other = type(toy)(tmp_path / precision, fabric=float16_fabric if precision == "16" else None)
    other.fit(make_config(epochs=6, precision=precision))
    ours = [line["loss"] for line in records(other.run_dir, "step")]
    plain = [line["loss"] for line in records(toy.run_dir, "step")]
    # the same curve within bfloat16's 3 significant digits, amplified by 36 steps
    assert ours == pytest.approx(plain, rel=0.1)


def test_unreadable_batches_are_skipped_without_losing_step(toy, make_config, make_loader):
    loader = make_loader(12, 2, unreadable=frozenset(range(1, 12)))
    result = toy.fit(make_config(epochs=1, log_every=1), loader=loader)
    assert result.steps == 6
    assert len(records(toy.run_dir, "step")) == 1


def test_epoch_without_a_readable_image_is_an_error(toy, make_config, make_loader):
    loader = make_loader(12, 2, unreadable=frozenset(range(12)))
    with pytest.raises(DataError, match="not one training image could be read in epoch 1"):
        toy.fit(make_config(epochs=1), loader=loader)


def test_failed_evaluation_saves_the_epoch_before_it(toy, make_config):
    def fail(model):
        raise ImageError("a.jpg: cannot be decoded")

    with pytest.raises(ImageError, match=r"a\.jpg"):
        toy.fit(make_config(epochs=2), evaluate=fail)
    saved = CheckpointStore(toy.run_dir).load_latest()
    assert saved["progress"]["step"] == 6
    assert "go on with: detrkit resume" in records(toy.run_dir, "event")[-1]["message"]
    other = dataclasses.replace(toy, run_dir=toy.run_dir.with_name("whole"))
    other.fit(make_config(epochs=2))
    toy.fit(make_config(epochs=2), resume=saved)
    ended = [CheckpointStore(run.run_dir).load_latest()["model"] for run in (toy, other)]
    assert same_state(*ended)


def test_average_is_evaluated_and_saved(toy, make_config):
    model = toy.model()
    toy.fit(make_config(ema_decay=0.9, epochs=1), model=model)
    saved = read_model(toy.run_dir).state_dict
    assert same_state(toy.evaluated[0], saved)
    assert not same_state(model.state_dict(), saved)
    assert model.training


def test_best_is_kept_and_patience_ends_training(toy, make_config):
    toy.scores = [0.2, 0.4, 0.3, 0.4, 0.1, 0.9]
    result = toy.fit(make_config(epochs=50, patience=3))
    assert (result.stopped, result.epochs, result.best) == ("patience", 5, 0.4)
    assert same_state(read_model(toy.run_dir).state_dict, toy.evaluated[1])
    again = toy.fit(make_config(epochs=50, patience=3), resume=CheckpointStore(toy.run_dir).load_latest())
    assert (again.stopped, again.epochs) == ("patience", 5)


def test_an_ap_that_cannot_be_measured_neither_stops_nor_replaces_a_measured_one(toy, make_config):
    toy.scores = [-1.0, -1.0, 0.2, -1.0, -1.0, -1.0, 0.3]
    result = toy.fit(make_config(epochs=7, patience=2))
    assert (result.stopped, result.best) == ("finished", 0.3)
    toy.evaluated, toy.scores = [], [0.2, -1.0, math.nan]
    result = toy.fit(make_config(epochs=5, patience=2))
    assert (result.stopped, result.epochs, result.best) == ("finished", 5, 0.2)
    assert same_state(read_model(toy.run_dir).state_dict, toy.evaluated[0])
    # an earlier version noted -1 as the best
    payload = CheckpointStore(toy.run_dir).load_latest()
    payload["progress"]["best"] = -1.0
    assert toy.fit(make_config(epochs=6), resume=payload).best is None
    assert same_state(read_model(toy.run_dir).state_dict, toy.evaluated[-1])


def test_resume_with_another_model_is_refused(toy, make_config):
    toy.fit(make_config(epochs=1))
    payload = CheckpointStore(toy.run_dir).load_latest()
    with pytest.raises(CheckpointError, match="does not fit"):
        toy.fit(make_config(epochs=1), model=torch.nn.Linear(2, 2), resume=payload)
    with pytest.raises(CheckpointError, match="lacks the state of the ema"):
        toy.fit(make_config(epochs=1, ema_decay=0.9), resume=payload)
