from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from detrkit.profiling.memory import PeakMemory, count_kept, tensor_bytes

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the mark cannot be set back")
def test_peak_is_the_most_since_the_reset_and_not_before():
    memory = PeakMemory(torch.device("cpu"))
    torch.ones(256 * MIB // 4).sum()  # before
    memory.reset()
    level = memory.now()
    assert memory.peak() - level < 64 * MIB
    torch.ones(128 * MIB // 4).sum()
    assert 100 * MIB < memory.peak() - level < 200 * MIB
    assert memory.now() < memory.peak() < memory.limit()


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
