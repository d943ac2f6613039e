"""Memory that runs out in the middle of a run: fewer images at once, the same gradient."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.checkpoint import CheckpointStore
from detrkit.config import update_config
from detrkit.errors import MemoryExhaustedError
from detrkit.training import step as step_module
from detrkit.training.forward_backward import Passes
from detrkit.training.memory import is_out_of_memory
from tests.unit.training.faults import assert_same
from tests.unit.training.nonfinite.test_watch import WithBatchNorm, state_of

SIDE = 32
PIXELS = SIDE * SIDE
COLOURS = {"transforms.on_device": True, "transforms.photometric": 0.5}


def events(run_dir: Path) -> list[str]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["message"] for line in lines if line["kind"] == "event"]


def from_step(monkeypatch: pytest.MonkeyPatch, step: int, change: Any) -> None:
    """Call ``change(run)`` before a step, counted from 1."""
    train_step = step_module.train_step

    def changed(run, batches, plan):
        if run.state.progress.step + 1 == step:
            change(run)
        train_step(run, batches, plan)

    monkeypatch.setattr("detrkit.training.loop.train_step", changed)


def set_budget(run: Any, pixels: int) -> None:
    run.setup = run.setup.with_config(update_config(run.config, {"train.pixel_budget": pixels}))


def shrink_budget(images: int) -> Any:
    def change(run: Any) -> None:
        set_budget(run, images * PIXELS)

    return change


def shrink_micro_batch(images: int) -> Any:
    def change(run: Any) -> None:
        run.state.progress.micro_batch = images

    return change


@pytest.mark.parametrize("step", [1, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "precision": "bf16"}])
def test_a_run_that_meets_the_error_ends_as_one_with_the_smaller_micro_batch(
    toy, tmp_path, make_config, make_loader, monkeypatch, step, settings
):
    """With dropout, averages, a trained batch norm and augmentation on the device; 8 images, of which 3 fit."""
    config = update_config(make_config(epochs=2, batch_size=8, ema_decay=0.9, **settings), COLOURS)
    with monkeypatch.context() as patch:
        from_step(patch, step, shrink_budget(3))
        toy.fit(config, model=WithBatchNorm(toy.model()), loader=make_loader(48, 8))
    other = type(toy)(tmp_path / "other")
    with monkeypatch.context() as patch:
        from_step(patch, step, shrink_micro_batch(2))
        other.fit(config, model=WithBatchNorm(other.model()), loader=make_loader(48, 8))
    assert_same(state_of(toy.run_dir), state_of(other.run_dir))
    found = events(toy.run_dir)
    assert [f"memory ran out at step {step} (" in message for message in found] == [True, True]
    assert "from here on 4 images at once instead of 8" in found[0]
    assert "from here on 2 images at once instead of 4" in found[1]
    assert not events(other.run_dir)
    assert CheckpointStore(toy.run_dir).load_latest()["progress"]["micro_batch"] == 2


def test_a_single_image_too_large_saves_and_says_what_to_do(toy, make_config, make_loader, monkeypatch):
    model = toy.model()

    def tiny_budget(run: Any) -> None:
        set_budget(run, 1)

    from_step(monkeypatch, 3, tiny_budget)
    with pytest.raises(MemoryExhaustedError, match=r"does not hold .* a single image .*train\.recompute=true"):
        toy.fit(make_config(), model=model, loader=make_loader())
    saved = CheckpointStore(toy.run_dir).load_latest()
    assert saved["progress"]["step"] == 2
    assert_same(saved["model"], model.state_dict())


def test_recovery_can_be_turned_off(toy, make_config, make_loader):
    with pytest.raises(torch.OutOfMemoryError, match=r"train\.pixel_budget is 1,024"):
        toy.fit(make_config(pixel_budget=PIXELS, on_oom="error"), loader=make_loader())


def test_memory_refused_by_the_host_is_recognised_and_recovered_from(toy, make_config, make_loader, monkeypatch):
    """The error is torch's own: 4 EiB are more than any machine has."""
    losses, tries = Passes.losses, []

    def greedy(self, batch, normalizers):
        tries.append(len(batch.sizes_hw))
        if len(batch.sizes_hw) > 1:
            torch.empty(2**60, dtype=torch.float32)
        return losses(self, batch, normalizers)

    monkeypatch.setattr(Passes, "losses", greedy)
    result = toy.fit(make_config(epochs=1), loader=make_loader(4, 2))
    assert result.stopped == "finished"
    assert tries == [2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error, is_memory):
    assert is_out_of_memory(error) is is_memory


TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:4]
from conftest import Toy, toy_config, toy_loader
from detrkit.config import update_config
from detrkit.distributed import leave_processes, make_fabric

config = toy_config(epochs=2, lr=1e-3, devices=2, batch_size=4)
toy = Toy(Path(sys.argv[1]), dropout=0.0, fabric=make_fabric(config.train))
rank = toy.fabric.global_rank
if rank == 1:
    config = update_config(config, {"train.pixel_budget": 2 * 32 * 32})
toy.fit(config, loader=toy_loader(16, 4, rank=rank, world_size=2))
leave_processes(toy.fabric)
"""


@pytest.mark.slow
def test_an_error_on_one_of_two_processes_halves_both(toy, tmp_path, make_config, make_loader):
    """From the very first step on, and the result is that of one process with all images."""
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    here = Path(__file__).parent
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(tmp_path / "two"), str(here), str(here.parents[2])]
    done = subprocess.run([*launcher, str(script), *arguments], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    found = events(tmp_path / "two")
    assert len(found) == 1
    assert "memory ran out at step 1 (of another process): from here on 2 images at once" in found[0]
    toy.dropout = 0.0
    model = toy.model()
    toy.fit(make_config(epochs=2, lr=1e-3, batch_size=8), model=model, loader=make_loader(16, 8))
    saved = CheckpointStore(tmp_path / "two").load_latest()
    assert saved["progress"]["micro_batch"] == 2
    for name, expected in model.state_dict().items():
        # sums in another order; AdamW divides by the gradient's size, which magnifies the rounding
        torch.testing.assert_close(saved["model"][name], expected, rtol=1e-3, atol=1e-5)
