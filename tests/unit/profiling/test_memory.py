from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from detrkit.profiling.memory import count_kept, tensor_bytes

SCRIPT = """
import torch
from detrkit.profiling.memory import PeakMemory
MIB = 2**20
memory = PeakMemory(torch.device("cpu"))
torch.ones(256 * MIB // 4).sum()  # before
memory.reset()
level = memory.now()
assert memory.peak() - level < 64 * MIB, (memory.peak(), level)
torch.ones(128 * MIB // 4).sum()
assert 100 * MIB < memory.peak() - level < 200 * MIB, (memory.peak(), level)
assert memory.now() < memory.peak() < memory.limit()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the mark cannot be set back")
def test_peak_is_the_most_since_the_reset_and_not_before():
    # in a process of its own: one that has run for long takes memory that it never gave back
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_kept_bytes_are_counted_once_and_without_parameters():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.randn(8, 16)
    found: dict[str, int] = {}
    with count_kept(model, found, lambda: "here"):
        model(x).sum()
    # the input, and what comes out of the relu, which both the relu and the last layer want
    assert found == {"here": x.nbytes + 8 * 32 * 4}


def test_bytes_of_nested_tensors():
    tensor = torch.zeros(5, dtype=torch.float64)
    assert tensor_bytes({"a": [tensor, (tensor, 3)], "b": {"c": tensor, "d": None}}) == 3 * 40
