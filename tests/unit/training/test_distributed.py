"""Two processes on the CPU do what one process does with the same images in one batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrkit.training.checkpoint import CheckpointStore

SCRIPT = """
import os
import signal
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import Toy, toy_config, toy_loader
from detrkit.training.processes import leave_processes, make_fabric

config = toy_config(epochs=3, accumulate=2, lr=1e-3, devices=2, ema_decay=0.9, log_every=1)
toy = Toy(Path(sys.argv[1]), dropout=0.0, fabric=make_fabric(config.train))
rank = toy.fabric.global_rank
loader = toy_loader(16, 2, unreadable=frozenset(map(int, sys.argv[3].split())), rank=rank, world_size=2)
result = toy.fit(config, loader=loader)
assert result.best == 0.5, result
assert len(toy.evaluated) == 3


class Stopping:
    def __init__(self, loader):
        self.loader, self.batch_sampler = loader, loader.batch_sampler

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for count, batch in enumerate(self.loader):
            if rank == 1 and count == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


toy.run_dir = Path(sys.argv[1]).with_name("stopped")
result = toy.fit(config, loader=Stopping(toy_loader(16, 2, rank=rank, world_size=2)))
assert (result.stopped, result.steps) == ("interrupted", 1), result
assert (toy.run_dir / "checkpoints" / "last.pt").exists() or rank == 1
leave_processes(toy.fabric)
"""


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_equal_one(toy, make_config, make_loader, tmp_path):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    # the second process finds no image in the first step, and half of its images in the second
    unreadable = order[1:8:2] + order[9:12:2]
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(tmp_path / "two"), str(Path(__file__).parent), " ".join(map(str, unreadable))]
    done = subprocess.run([*launcher, str(script), *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    toy.dropout = 0.0
    model = toy.model()
    config = make_config(epochs=3, lr=1e-3, ema_decay=0.9, log_every=1)
    toy.fit(config, model=model, loader=make_loader(16, 8, unreadable=frozenset(unreadable)))
    saved = CheckpointStore(tmp_path / "two").load_latest()
    assert saved["world_size"] == 2
    # sums in another order; AdamW divides by the gradient's size, which magnifies the rounding
    assert losses(tmp_path / "two") == pytest.approx(losses(toy.run_dir), rel=1e-4)
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(saved["model"][name], expected, rtol=1e-3, atol=1e-5)
