from __future__ import annotations

import pytest
import torch

from detrkit.profiling.flops import PEAKS, find_peak, peak_tflops, utilisation


@pytest.mark.parametrize(
    ("device", "entry"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L4", "L4"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_a_gpu_is_found_by_the_name_that_torch_gives_it(device: str, entry: str):
    assert find_peak(device) == PEAKS[entry]


@pytest.mark.parametrize("device", ["NVIDIA L40", "AMD Instinct MI300X", ""])
def test_an_unknown_gpu_has_no_peak(device: str):
    assert find_peak(device) is None


def test_utilisation_is_the_share_of_the_precisions_peak(monkeypatch: pytest.MonkeyPatch):
    peak = PEAKS["H200"]
    assert peak_tflops(peak, "bf16") == 989.5
    assert utilisation(989.5e12, 2.0, peak_tflops(peak, "bf16")) == pytest.approx(0.5)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert peak_tflops(peak, "32") == peak.tf32
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert peak_tflops(peak, "32") == peak.fp32


def test_half_precision_is_never_slower_than_float32_in_the_table():
    for peak in PEAKS.values():
        assert peak.bf16 > peak.tf32 >= peak.fp32 > 0
        assert peak.source
