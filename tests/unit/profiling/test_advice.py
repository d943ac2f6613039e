from __future__ import annotations

from typing import Any

import pytest
import torch

from detrkit.config import Config, update_config
from detrkit.data.loader import LoadingFacts
from detrkit.profiling import advice
from detrkit.profiling.advice import PEAKS, advise, peak_tflops, share_of
from detrkit.profiling.measure import Measured, MemoryUse, StepTimes

GIB = 2**30
FACTS = LoadingFacts(workers=1, processes=1, cpus=8, image_short=480, needed_short=800, has_cache=False, data="d")
CALM = {"forward: a (A)": 0.3, "forward": 0.02, "backward": 0.6, "optimiser": 0.05, "rest": 0.03}


def measured(
    phases: dict[str, float] | None = None, padding: float = 0.0, kept: int = 1, peak: int = 10, limit: int = 15
) -> Measured:
    step = StepTimes(phases or CALM, images=2, padding=padding)
    use = MemoryUse(GIB, GIB, GIB, 0, {"forward: body (Body)": kept * GIB, "forward": 0}, peak * GIB, limit * GIB)
    return Measured([step] * 3, [step] * 3, use, 10**12, FACTS, torch.device("cpu"))


def config(**changes: Any) -> Config:
    defaults = {"train.precision": "bf16"}
    return update_config(Config(), {**defaults, **{key.replace("__", "."): v for key, v in changes.items()}})


def kinds(found: Measured, **changes: Any) -> list[str]:
    return [item.kind for item in advise(config(**changes), found)]


def test_a_step_that_computes_needs_no_advice():
    assert kinds(measured()) == []


def test_waiting_for_data_names_the_workers_and_the_share():
    (item,) = advise(config(), measured({**CALM, "data": 1.0}))
    assert item.kind == "data"
    assert item.share == pytest.approx(0.5)
    assert "50 %" in item.sentence
    assert "data.workers" in item.sentence


@pytest.mark.parametrize(("hardware", "expected"), [(True, ["precision"]), (False, [])])
def test_float32_is_named_where_the_hardware_has_better(
    hardware: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(advice, "has_bf16", lambda _device: hardware)
    assert kinds(measured(), train__precision="32") == expected
    assert kinds(measured(), train__precision="bf16") == []


def test_memory_that_is_mostly_activations_can_be_had_back():
    (item,) = advise(config(), measured(kept=7))
    assert item.kind == "memory"
    assert "67% full" in item.sentence
    assert "70% of that are activations" in item.sentence
    assert "body (Body)" in item.sentence
    assert "train.recompute=true" in item.sentence
    assert kinds(measured(kept=7), train__recompute=True) == []


def test_padding_asks_for_buckets_unless_they_are_on():
    (item,) = advise(config(model__backbone_norm="group"), measured(padding=0.3))
    assert item.kind == "padding"
    assert "30% of the pixels" in item.sentence
    assert "group norm" in item.sentence
    assert kinds(measured(padding=0.3), data__buckets=True) == []


@pytest.mark.parametrize(
    ("phase", "kind"),
    [("optimiser", "optimiser"), ("EMA", "ema"), ("matching", "matching"), ("normalisation", "transfer")],
)
def test_a_phase_that_takes_too_much_is_named_with_its_share(phase: str, kind: str):
    (item,) = advise(config(), measured({**CALM, phase: 0.5}))
    assert item.kind == kind
    assert f"{item.share:.0%}" in item.sentence


def test_the_greatest_share_comes_first_and_phases_share_a_prefix():
    found = measured({**CALM, "data": 1.0, "matching": 0.4}, padding=0.2)
    shares = [item.share for item in advise(config(), found)]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 3
    assert share_of(measured(), "forward") == pytest.approx(0.32)


def test_a_gpu_with_little_to_do_is_given_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(advice, "utilisation_of", lambda _config, _measured: 0.08)
    (item,) = advise(config(), measured(peak=10, limit=100))
    assert item.kind == "batch"
    assert "8% of its peak" in item.sentence
    assert "train.batch_size (now 4)" in item.sentence
    assert kinds(measured(peak=90, limit=100)) == []


@pytest.mark.parametrize(
    ("device", "entry"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA L4", "L4"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L40", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_a_gpu_is_found_by_the_name_that_torch_gives_it(device: str, entry: str | None):
    assert peak_tflops(device, "bf16") == (None if entry is None else PEAKS[entry][0])
