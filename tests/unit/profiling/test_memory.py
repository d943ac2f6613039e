from __future__ import annotations

import torch
from torch import nn

from detrkit.profiling.memory import count_kept, tensor_bytes


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
