"""The benchmark of a GPU, run where there is none: small, on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from benchmarks.detr_speed import COMPILED, THEIRS
from benchmarks.gpu_training import gpu_report, rates_table, training_rates

PEAKS: dict[str, float | None] = {"bf16": 0.004, "32": 0.002}
CPU = torch.device("cpu")


def make_linear(batch: int) -> Callable[[], object]:
    """Steps of a linear layer, which runs out of memory above 4 images."""
    layer, x = nn.Linear(64, 64, bias=False), torch.randn(batch, 64)

    def work() -> None:
        if batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        layer(x).sum().backward()
        layer.zero_grad()

    return work


def flops_of(batch: int) -> int:
    return 2 * (2 * batch * 64 * 64)  # forward, and the gradient of the weight


def test_rates_are_of_each_competitor_and_batch_size_and_memory_that_runs_out_is_said():
    competitors = {"them": make_linear, "us bf16": make_linear}
    rates = training_rates(competitors, CPU, (2, 8, 4), 3, flops_of, PEAKS)
    assert [(rate.batch, rate.name) for rate in rates] == [(b, n) for b in (2, 8, 4) for n in competitors]
    assert [rate.images_per_s is None for rate in rates] == [False, False, True, True, False, False]
    for rate in rates:
        if rate.images_per_s is None:
            assert rate.memory_gib is None
            assert rate.utilisation is None
            continue
        peak = PEAKS["bf16" if "bf16" in rate.name else "32"]
        assert peak is not None
        expected = flops_of(rate.batch) * rate.images_per_s / rate.batch / (peak * 1e12)
        assert rate.utilisation == pytest.approx(expected)
    text = rates_table(rates)
    assert text.count("out of memory") == 2
    assert "| 4 | us bf16 |" in text


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
