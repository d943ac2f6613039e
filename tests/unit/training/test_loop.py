from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detrkit.checkpoint import CheckpointStore, load_checkpoint, read_model
from detrkit.distributed import make_fabric
from detrkit.errors import CheckpointError, ConfigError, DataError, ImageError, NonFiniteError
from detrkit.training import loop, step
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


class CountTransfers(TorchDispatchMode):
    """Counts what would make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.scalars = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.scalars += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_step_without_log_reads_nothing_from_the_device(toy, make_config, monkeypatch, precision, float16_fabric):
    toy.fabric = float16_fabric if precision == "16" else None
    counts = []

    def counted(run, batches, plan):
        with CountTransfers() as mode:
            step.train_step(run, batches, plan)
        counts.append(mode.scalars)

    monkeypatch.setattr(loop, "train_step", counted)
    toy.fit(make_config(epochs=1, accumulate=2, ema_decay=0.9, clip_norm=0.1, precision=precision))
    # the matcher's transfer is a copy of a whole tensor, not a scalar
    assert counts == [0, 0, 0]


def test_resumed_run_is_bit_identical(tmp_path, toy, make_config, make_loader):
    config = make_config(epochs=3, accumulate=2, ema_decay=0.9, log_every=2, schedule="cosine", warmup_steps=2)
    toy.scores = [0.1, 0.3, 0.2]
    whole_model = toy.model()
    whole = toy.fit(config, model=whole_model, loader=make_loader(14, 2))
    whole_last = CheckpointStore(toy.run_dir).load_latest()
    whole_records = records(toy.run_dir)

    broken = type(toy)(tmp_path / "broken", scores=toy.scores)
    # epochs of 7 micro-batches, 4 steps: the signal comes inside the second epoch, between two log lines
    loader = make_loader(14, 2)
    first = broken.fit(config, loader=StopAt(loader, at=9))
    assert first.stopped == "interrupted"
    assert first.signal_number == signal.SIGINT
    assert (first.steps, first.epochs) == (5, 1)
    payload = CheckpointStore(broken.run_dir).load_latest()
    assert payload["progress"]["batch"] == 2
    loader.batch_sampler.set_epoch(1, 2)  # a loader's length may be what is left of the epoch
    torch.rand(5)  # whatever else the process did in between
    resumed_model = broken.model()
    with torch.no_grad():
        for parameter in resumed_model.parameters():
            parameter.zero_()
    second = broken.fit(config, model=resumed_model, loader=loader, resume=payload)

    assert (second.steps, second.epochs, second.best) == (whole.steps, whole.epochs, whole.best)
    assert same_state(whole_model.state_dict(), resumed_model.state_dict())
    last = CheckpointStore(broken.run_dir).load_latest()
    assert same_state(whole_last["ema"]["weights"], last["ema"]["weights"])
    assert whole_last["ema"]["count"] == last["ema"]["count"] == 12
    for key, state in whole_last["optimizer"]["state"].items():
        assert same_state(state, last["optimizer"]["state"][key])
    assert whole_last["progress"] == last["progress"]
    assert records(broken.run_dir) == whole_records
    assert same_state(read_model(toy.run_dir).state_dict, read_model(broken.run_dir).state_dict)


def test_resume_from_an_older_checkpoint_drops_newer_records(toy, make_config):
    toy.fit(make_config(epochs=3, log_every=1))
    whole = records(toy.run_dir)
    older = load_checkpoint(CheckpointStore(toy.run_dir).previous_path)
    assert older["progress"]["epoch"] == 2
    toy.fit(make_config(epochs=3, log_every=1), resume=older)
    assert records(toy.run_dir) == whole


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


def test_interrupted_evaluation_is_repeated_on_resume(toy, make_config):
    def interrupted(model):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("evaluation goes on after the signal")

    model = toy.model()
    config = make_config(ema_decay=0.5)
    first = toy.fit(config, model=model, evaluate=interrupted)
    assert (first.stopped, first.signal_number) == ("interrupted", signal.SIGTERM)
    payload = CheckpointStore(toy.run_dir).load_latest()
    # saved are the model's own weights, not the average that was being evaluated
    assert same_state(payload["model"], model.state_dict())
    assert (payload["progress"]["epoch"], payload["progress"]["batch"]) == (0, 6)
    second = toy.fit(config, resume=payload)
    assert second.stopped == "finished"
    assert [line["epoch"] for line in records(toy.run_dir, "eval")] == [1, 2]
    assert [line["step"] for line in records(toy.run_dir, "step")] == [2, 4, 6, 8, 10, 12]


def test_second_signal_aborts_at_once(toy, make_config, make_loader):
    class Twice(StopAt):
        def __iter__(self):
            for batch in self.loader:
                os.kill(os.getpid(), self.number)
                os.kill(os.getpid(), self.number)
                yield batch

    with pytest.raises(KeyboardInterrupt):
        toy.fit(make_config(), loader=Twice(make_loader(), at=1))
    assert not (toy.run_dir / "checkpoints").exists()


def test_interrupt_says_how_to_resume(toy, make_config, make_loader, capsys):
    toy.fit(make_config(), loader=StopAt(make_loader(), at=2))
    assert f"detrkit resume {toy.run_dir}" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_checkpoint_inside_an_epoch_after_some_minutes(toy, make_config, monkeypatch):
    saved = []
    monkeypatch.setattr(
        CheckpointStore, "save_last", lambda self, payload: saved.append(payload["progress"]["step"])
    )
    toy.fit(make_config(epochs=1, save_every_min=1e-9))
    assert saved == [1, 2, 3, 4, 5, 6, 6]


def test_non_finite_loss_stops_and_harms_no_weight(toy, make_config, make_loader):
    class Poisoned(StopAt):
        def __iter__(self):
            for batch in self.loader:
                self.count += 1
                if self.count == self.at:
                    batch.truth.boxes_cxcywh.fill_(math.nan)
                yield batch

    model = toy.model()
    config = make_config(log_every=100, epochs=1, ema_decay=0.9, on_nonfinite="stop")
    with pytest.raises(NonFiniteError, match=r"a step was not finite, .*detrkit train --replay"):
        toy.fit(config, model=model, loader=Poisoned(make_loader(), at=3))
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    lines = [json.loads(line) for line in (toy.run_dir / "metrics.jsonl").read_text().splitlines()]
    message = next(line["message"] for line in lines if line["kind"] == "event")
    assert re.match(r"step 3 of epoch 1 is not finite: image 10\d\d has a box cxcywh \(nan, nan", message)
    # the step after it was made before anybody knew, and is not lost
    assert CheckpointStore(toy.run_dir).load_latest()["progress"]["step"] == 4


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


def test_float16_that_never_finds_a_scale_is_an_error(toy, make_config, float16_fabric):
    toy.fabric = float16_fabric
    toy.fabric.strategy.precision.scaler.load_state_dict({**SCALER, "scale": 2.0**-13})
    model = toy.model()
    model.class_embed.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="5 steps in a row were not finite"):
        toy.fit(make_config(precision="16"), model=model)


def test_cpu_float16_and_missing_cuda_are_config_errors(make_config):
    with pytest.raises(ConfigError, match="precision"):
        make_fabric(make_config(precision="16").train)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            make_fabric(make_config(device="cuda").train)


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


def test_evaluates_every_n_epochs_and_at_the_end(toy, make_config):
    result = toy.fit(make_config(epochs=5, eval_every=2))
    assert [line["epoch"] for line in records(toy.run_dir, "eval")] == [2, 4, 5]
    assert result.last_metrics == {"AP": 0.5, "AP50": 0.9}


def test_images_go_to_tensorboard(toy, make_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = (torch.rand(8, 8, 3) * 255).byte().numpy()
    toy.fit(make_config(epochs=1), draw_samples=lambda model: [("one", picture)])
    events = EventAccumulator(str(toy.run_dir))
    events.Reload()
    assert events.Tags()["images"] == ["samples/one"]
    assert {"loss/total", "lr/model", "eval/AP"} <= set(events.Tags()["scalars"])


def test_resume_with_another_model_is_refused(toy, make_config):
    toy.fit(make_config(epochs=1))
    payload = CheckpointStore(toy.run_dir).load_latest()
    with pytest.raises(CheckpointError, match="does not fit"):
        toy.fit(make_config(epochs=1), model=torch.nn.Linear(2, 2), resume=payload)
    with pytest.raises(CheckpointError, match="lacks the state of the ema"):
        toy.fit(make_config(epochs=1, ema_decay=0.9), resume=payload)


def test_empty_loader_is_a_data_error(toy, make_config, make_loader):
    with pytest.raises(DataError, match="no batch"):
        toy.fit(make_config(), loader=make_loader(0, 2))
