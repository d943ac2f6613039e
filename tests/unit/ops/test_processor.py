from __future__ import annotations

import pytest
import torch

from detrkit.ops.processor import has_fast_bf16


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
