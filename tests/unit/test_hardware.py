from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from detrkit.hardware import count_flops, has_fast_bf16

SCRIPT = """
import torch
from detrkit.hardware import PeakMemory
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


def test_products_and_convolutions_are_counted_forward_and_backward():
    linear, x = nn.Linear(20, 30, bias=False), torch.randn(10, 20, requires_grad=True)
    with count_flops() as count:
        linear(x).sum().backward()
    assert count.get_total_flops() == 3 * 2 * 10 * 20 * 30  # forward, gradient of x, gradient of the weight
    conv, image = nn.Conv2d(3, 8, 3, bias=False, padding=1), torch.randn(2, 3, 16, 16)
    with count_flops() as count:
        conv(image).sum().backward()  # images need no gradient
    assert count.get_total_flops() == 2 * (2 * 2 * 16 * 16 * 8 * 3 * 9)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True, "avx512_bf16": False}, False)],
)
def test_only_processors_with_bf16_instructions_count(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: bool
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_fast_bf16() is expected


def test_a_torch_that_cannot_tell_means_no(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_fast_bf16() is False
