"""Two processes on the CPU do what one process does with the same images in one batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.checkpoint import CheckpointStore
from detrkit.distributed import lost_processes
from detrkit.errors import TrainingError
from tests.unit.training.gradients import CASES, QUICK, one_process

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")

SCRIPT = """
import os
import signal
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import Toy, toy_config, toy_loader
from gradients import two_processes
from detrkit.distributed import leave_processes, make_fabric

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


class LosingWorkers(Stopping):
    '''A signal that reaches the workers of one process too, whose loader then fails.'''

    def __iter__(self):
        for batch in super().__iter__():
            if rank == 1 and batch.image_ids == second:
                raise RuntimeError("DataLoader worker is killed by signal")
            yield batch


toy.run_dir = Path(sys.argv[1]).with_name("stopped")
result = toy.fit(config, loader=Stopping(toy_loader(16, 2, rank=rank, world_size=2)))
assert (result.stopped, result.steps) == ("interrupted", 1), result
assert (toy.run_dir / "checkpoints" / "last.pt").exists() or rank == 1

second = list(toy_loader(16, 2, rank=rank, world_size=2))[2].image_ids
toy.run_dir = Path(sys.argv[1]).with_name("lost-workers")
result = toy.fit(config, loader=LosingWorkers(toy_loader(16, 2, rank=rank, world_size=2)))
assert (result.stopped, result.steps) == ("interrupted", 1), result

two_processes(toy.fabric, Path(sys.argv[1]).parent, sys.argv[4].split())
leave_processes(toy.fabric)
"""


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


# The second process finds no image in the first step, and half of its images in the second.
ORDER = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
UNREADABLE = ORDER[1:8:2] + ORDER[9:12:2]


def launch(folder: Path, names: Iterable[str]) -> Path:
    """Train the toy and make the steps of some cases in two processes under torchrun; what they have left."""
    script = folder / "train.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(folder / "two"), str(Path(__file__).parent), " ".join(map(str, UNREADABLE)), " ".join(names)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(tmp_path_factory.mktemp("two"), QUICK)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(tmp_path_factory.mktemp("others"), CASES.keys() - set(QUICK))


def test_two_processes_equal_one(toy: Any, make_config: Any, make_loader: Any, two: Path):
    toy.dropout = 0.0
    model = toy.model()
    config = make_config(epochs=3, lr=1e-3, ema_decay=0.9, log_every=1)
    toy.fit(config, model=model, loader=make_loader(16, 8, unreadable=frozenset(UNREADABLE)))
    saved = CheckpointStore(two / "two").load_latest()
    assert saved["world_size"] == 2
    # sums in another order; AdamW divides by the gradient's size, which magnifies the rounding
    assert losses(two / "two") == pytest.approx(losses(toy.run_dir), rel=1e-4)
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(saved["model"][name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_gradients_of_two_processes_are_those_of_one(name: str, request: pytest.FixtureRequest, tmp_path: Path):
    """To 1e-5 of each parameter's largest gradient, 2e-6 in all: sums in another order differ by some 1e-6.

    Three pieces against one are allowed 5e-5 for a parameter alone: one layer norm's gradient (0.001, where others
    have 0.2) is the difference of larger ones, and comes out at 1.8e-5.
    """
    expected = one_process(CASES[name], tmp_path)
    folder = request.getfixturevalue("two" if name in QUICK else "others")
    found = torch.load(folder / f"gradients-{name}.pt", weights_only=True)
    assert found.keys() == expected.keys()
    bound = 5e-5 if name.endswith("accumulated") else 1e-5
    for parameter, gradient in expected.items():
        assert (found[parameter] - gradient).abs().max() <= bound * gradient.abs().max(), parameter
    whole, own = (torch.cat([part[key].flatten() for key in expected]) for part in (expected, found))
    assert (own - whole).norm() <= 2e-6 * whole.norm()


@pytest.mark.parametrize(
    "said",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:12345",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:150] read: Connection reset by peer",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_a_lost_process_is_told_in_words(said: str):
    with pytest.raises(TrainingError, match="another process of the training has ended"), lost_processes():
        raise RuntimeError(said)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes do not match"), lost_processes():
        raise RuntimeError("shapes do not match")
