from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from detrkit.detectors.cost import count_cost, count_parameters
from tests.unit.detectors.fakes import FakeStages


def test_arithmetic_and_parameters_of_a_small_network():
    stages = FakeStages()
    cost = count_cost(stages, torch.zeros((3, 16, 20), dtype=torch.uint8))
    assert cost.flops == 2 * 16 * 20 * 4 * 3 * 9
    assert cost.parameters == 4 * 3 * 9 + 2 * 4
    assert cost.buffers == 2 * 4 + 1  # mean, variance, and the count of batches
    assert cost.weight_bytes == 4 * (4 * 3 * 9 + 2 * 4 + 2 * 4) + 8
    assert cost.input_shape == (1, 3, 16, 20)
    assert cost.peak_bytes >= 0
    assert cost.to_dict()["input_shape"] == [1, 3, 16, 20]


def test_a_batch_costs_its_images():
    image = torch.zeros((3, 16, 20), dtype=torch.uint8)
    one, three = count_cost(FakeStages(), image), count_cost(FakeStages(), [image] * 3)
    assert three.flops == 3 * one.flops
    assert three.input_shape == (3, 3, 16, 20)


def test_queries_that_ask_for_gradients_do_not_stop_the_counter():
    class Queries(nn.Module):
        def __init__(self):
            super().__init__()
            self.queries, self.layer = nn.Parameter(torch.zeros(5, 3)), nn.Linear(3, 2, bias=False)

        def forward(self, _images: torch.Tensor) -> torch.Tensor:
            return self.layer(self.queries)[None]

    stages = FakeStages()
    stages.network = Queries()
    assert count_cost(stages, torch.zeros((3, 8, 8), dtype=torch.uint8)).flops == 2 * 5 * 3 * 2


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 3, bias=False)
    assert count_parameters(nn.Sequential(layer, layer))["parameters"] == 9


SCRIPT = """
import torch
from detrkit.detectors.cost import peak_memory
from tests.unit.detectors.fakes import FakeStages

MIB = 2**20
stages = FakeStages()
stages.forward = lambda inputs: torch.ones(64 * MIB // 4).sum().expand(len(inputs))
image = torch.zeros((3, 8, 8), dtype=torch.uint8)
blocks = [torch.ones(MIB // 4) for _ in range(512)]  # given back to the allocator, not to the system
del blocks
peak = peak_memory(stages, [image])
assert 56 * MIB < peak < 96 * MIB, peak / MIB
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the mark of the peak cannot be set back")
def test_peak_is_what_a_detection_takes_although_memory_was_free_before():
    # in a process of its own, whose memory no other test has used
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
