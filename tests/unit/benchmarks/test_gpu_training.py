"""The benchmark of a GPU, run where there is none: small, on the CPU."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.gpu_training import NAMES, gpu_report


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_the_real_models_run_through_the_same_code():
    report = gpu_report(torch.device("cpu"), 1, batches=(1,), size_hw=(64, 96), names=NAMES[:4])
    for name in NAMES[:4]:
        assert re.search(rf"\| 1 \| {name} \| \d+\.\d \|", report)
    assert "GFLOP" in report
