"""Steps that are not finite: each is caught at its step, named, and changes nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrkit.checkpoint import CheckpointStore
from detrkit.errors import NonFiniteError
from detrkit.training import step as step_module
from tests.unit.training.faults import SpoilBatch, assert_same, nan_box, nan_pixels, nan_weight, thin_box

TIMED = ("images_per_s", "data_wait", "memory_gib", "seconds", "elapsed_s")


def lines_of(run_dir: Path, kind: str = "event") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def messages(run_dir: Path) -> list[str]:
    return [line["message"] for line in lines_of(run_dir) if "not finite" in line["message"]]


def saved_steps(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "nonfinite").iterdir())


def state_of(run_dir: Path) -> dict[str, Any]:
    saved = CheckpointStore(run_dir).load_latest()
    return {name: saved[name] for name in ("model", "optimizer", "ema", "scaler")}


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (nan_box, r"image 10\d\d has a box cxcywh \(nan, "),
        (thin_box, r"image 10\d\d has a box cxcywh \([\d.]+, [\d.]+, 0, 0\.3\), its object number \d"),
        (nan_pixels, r"loss nan"),
    ],
)
def test_a_damaged_batch_is_caught_at_its_step_and_named(toy, make_config, make_loader, spoil, named):
    loader = SpoilBatch(make_loader(12, 3), 3, spoil)
    result = toy.fit(make_config(epochs=2, log_every=1), loader=loader)
    assert (result.stopped, result.steps) == ("finished", 8)
    (message,) = messages(toy.run_dir)
    assert re.match(rf"step 3 of epoch 1 is not finite[:;] {named}", message), message
    assert saved_steps(toy.run_dir) == ["step-000003-process-0.pt"]
    assert f"detrkit train --replay {toy.run_dir}/nonfinite/step-000003-process-0.pt" in message
    bad = [line["step"] for line in lines_of(toy.run_dir, "step") if line["grad_norm"] is None]
    assert bad == [3]


def test_a_weight_that_is_not_finite_stops_training_after_the_most_bad_steps(toy, make_config, make_loader):
    model = toy.model()
    loader = SpoilBatch(make_loader(24, 2), 4, nan_weight(model, "layers.1.weight"))
    with pytest.raises(NonFiniteError, match=r"3 steps in a row were not finite.*such as layers\.1\.weight"):
        toy.fit(make_config(epochs=1, max_bad_steps=3), model=model, loader=loader)
    assert [message[:6] for message in messages(toy.run_dir)] == ["step 4", "step 5", "step 6", "step 7"]
    assert all("the weight layers.1.weight is not finite" in message for message in messages(toy.run_dir))
    assert saved_steps(toy.run_dir) == [f"step-00000{step}-process-0.pt" for step in (4, 5, 6)]
    saved = CheckpointStore(toy.run_dir).load_latest()
    assert saved["progress"]["step"] == 7
    assert torch.equal(saved["model"]["layers.0.weight"], model.layers[0].weight)
    assert saved["progress"]["bad_steps_saved"] == 3  # the fourth was not


def test_training_stopped_by_bad_steps_can_be_resumed(toy, make_config, make_loader):
    """The count begins anew, or a run that was mended could not make a step."""
    config = make_config(epochs=1, max_bad_steps=2)
    with pytest.raises(NonFiniteError, match="2 steps in a row"):
        toy.fit(config, loader=SpoilBatch(make_loader(24, 2), 3, nan_pixels, onwards=True))
    saved = CheckpointStore(toy.run_dir).load_latest()
    result = toy.fit(config, loader=make_loader(24, 2), resume=saved)
    assert (result.stopped, result.steps) == ("finished", 12)


class WithBatchNorm(nn.Module):
    """A detector with a batch norm that is trained in front."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.detector = detector

    def forward(self, images: Tensor, padding_mask: Tensor | None = None, objects: object = None) -> Any:
        return self.detector(self.norm(images), padding_mask)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_bad_step_does_nothing(toy, tmp_path, make_config, make_loader, monkeypatch, precision):
    """Weights, moments, step counters and running statistics; the average goes on toward the same weights."""
    config = make_config(epochs=2, ema_decay=0.9, accumulate=2, precision=precision)
    toy.fit(config, model=WithBatchNorm(toy.model()), loader=SpoilBatch(make_loader(16, 2), 3, nan_pixels))
    assert len(messages(toy.run_dir)) == 1

    apply, count = step_module.apply_gradients, [0]

    def skip_the_second(optimizer, clip_norm, scaler=None):
        count[0] += 1
        return torch.tensor(torch.nan) if count[0] == 2 else apply(optimizer, clip_norm, scaler)

    monkeypatch.setattr(step_module, "apply_gradients", skip_the_second)
    other = type(toy)(tmp_path / "other")
    other.fit(config, model=WithBatchNorm(other.model()), loader=make_loader(16, 2))
    assert count == [8]
    assert_same(state_of(toy.run_dir), state_of(other.run_dir))
    counters = {float(state["step"]) for state in state_of(toy.run_dir)["optimizer"]["state"].values()}
    assert counters == {7.0}
    assert state_of(toy.run_dir)["ema"]["count"] == 8


class StopAfter(SpoilBatch):
    """A loader that sends this process a signal with batch number ``signal_at``."""

    def __init__(self, loader: Any, at: int, spoil: Any, signal_at: int):
        super().__init__(loader, at, spoil)
        self.signal_at = signal_at

    def __iter__(self):
        for batch in super().__iter__():
            if self.count == self.signal_at:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


@pytest.mark.parametrize("signal_at", [3, 4])
def test_resume_across_a_bad_step_is_bit_exact(toy, tmp_path, make_config, make_loader, signal_at):
    """Whether the run is stopped right after the bad step, the third, or one step later."""
    config = make_config(epochs=2, log_every=1, ema_decay=0.9)
    toy.fit(config, loader=SpoilBatch(make_loader(), 3, nan_pixels))
    broken = type(toy)(tmp_path / "broken")
    first = broken.fit(config, loader=StopAfter(make_loader(), 3, nan_pixels, signal_at))
    assert (first.stopped, first.steps) == ("interrupted", signal_at)
    saved = CheckpointStore(broken.run_dir).load_latest()
    assert saved["progress"]["bad_steps"] == (1 if signal_at == 3 else 0)
    broken.fit(config, loader=make_loader(), resume=saved)
    ended = [CheckpointStore(run.run_dir).load_latest() for run in (toy, broken)]
    for name in ("model", "optimizer", "ema", "progress"):
        assert_same(ended[0][name], ended[1][name])
    own = [
        [
            {name: value for name, value in line.items() if name not in TIMED}
            for line in lines_of(run.run_dir, "step")
        ]
        for run in (toy, broken)
    ]
    assert own[0] == own[1]
    assert [len(messages(run.run_dir)) for run in (toy, broken)] == [1, 1]


def test_stopping_at_the_first_bad_step_keeps_what_was_done(toy, make_config, make_loader):
    with pytest.raises(NonFiniteError, match=r"a step was not finite, .*--replay"):
        toy.fit(make_config(on_nonfinite="stop"), loader=SpoilBatch(make_loader(), 2, thin_box))
    assert CheckpointStore(toy.run_dir).load_latest()["progress"]["step"] == 3


TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:4]
from conftest import Toy, toy_config, toy_loader
from faults import SpoilBatch, nan_pixels
from detrkit.distributed import leave_processes, make_fabric

config = toy_config(epochs=1, lr=1e-3, devices=2, log_every=1, on_oom=sys.argv[4])
toy = Toy(Path(sys.argv[1]), dropout=0.0, fabric=make_fabric(config.train))
rank = toy.fabric.global_rank
loader = toy_loader(16, 2, rank=rank, world_size=2)
result = toy.fit(config, loader=SpoilBatch(loader, 2, nan_pixels) if rank == 1 else loader)
assert (result.stopped, result.steps) == ("finished", 4), result
leave_processes(toy.fabric)
"""


@pytest.mark.slow
@pytest.mark.parametrize("on_oom", ["halve", "error"])
def test_nan_on_one_of_two_processes_is_skipped_by_both(tmp_path, on_oom):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    here = Path(__file__).parent
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(tmp_path / "run"), str(here.parent), str(here.parents[3]), on_oom]
    done = subprocess.run([*launcher, str(script), *arguments], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert saved_steps(tmp_path / "run") == ["step-000002-process-1.pt"]
    (message,) = messages(tmp_path / "run")
    assert message.startswith("process 1: step 2 of epoch 1 is not finite")
    saved = CheckpointStore(tmp_path / "run").load_latest()
    assert {float(state["step"]) for state in saved["optimizer"]["state"].values()} == {3.0}
    assert saved["progress"]["bad_steps"] == 0
    assert all(bool(value.isfinite().all()) for value in saved["model"].values())
