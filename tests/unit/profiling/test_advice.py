from __future__ import annotations

from typing import Any

import pytest
import torch

from detrkit.config import Config, update_config
from detrkit.data.loader import LoadingFacts
from detrkit.profiling.advice import advise, share_of
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
