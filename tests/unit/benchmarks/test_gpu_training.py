"""The benchmark of a GPU, run where there is none: small, on the CPU."""

from __future__ import annotations

import warnings

import pytest
import torch

from benchmarks.detr_speed import COMPILED, THEIRS
from benchmarks.gpu_training import gpu_report

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_real_models_run_through_the_same_code():
    names = (THEIRS, "transformers, bf16 autocast", "detrkit float32", "detrkit bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        report = gpu_report(CPU, 1, batches=(1,), size_hw=(64, 96), names=names)
    for name in names:
        assert f"| 1 | {name} |" in report
    assert "GFLOP" in report
    assert COMPILED not in report
