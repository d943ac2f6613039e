"""Out of memory in real trainings, by the command: micro-batches found, halved, kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detrkit.config import read_config
from tests.e2e.conftest import SIDE, assert_equal, records, run_well, train_arguments, trained

BUDGET = 2 * SIDE * SIDE


def events(run: Path) -> list[str]:
    return [record["message"] for record in records(run, "event")]


def memory_settings(**settings: Any) -> dict[str, Any]:
    """A ResNet's and the transformer's worth of a training: averages and dropout on, sizes fixed."""
    return {"train__ema_decay": 0.9, "model__dropout": 0.1, "data__workers": 0, **settings}


@pytest.mark.slow
def test_batch_auto_trains_as_the_number_does(tiny_data: Path, tmp_path: Path):
    found, given = tmp_path / "auto", tmp_path / "number"
    arguments = train_arguments(tiny_data, found, 1, **memory_settings(train__pixel_budget=BUDGET))
    out = run_well(*arguments, "--batch", "auto")
    assert "2 images fit at once" in out
    assert "a batch of 4 goes in pieces of 2, with the same gradient" in out
    assert read_config(found / "config.yaml").train.micro_batch == 2
    assert not any("memory ran out" in message for message in events(found))
    run_well(*train_arguments(tiny_data, given, 1, **memory_settings(train__micro_batch=2)))
    assert_equal(trained(found), trained(given))


def test_a_run_that_runs_out_of_memory_goes_on_and_says_so(tiny_data: Path, tmp_path: Path):
    halved, given = tmp_path / "halved", tmp_path / "number"
    run_well(*train_arguments(tiny_data, halved, 1, **memory_settings(train__pixel_budget=BUDGET)))
    run_well(*train_arguments(tiny_data, given, 1, **memory_settings(train__micro_batch=2)))
    (message,) = events(halved)
    assert message.startswith("memory ran out at step 1 (4 x 64 x 64 are 16,384 pixels")
    ours, theirs = trained(halved), trained(given)
    assert ours["progress"].pop("micro_batch") == 2
    assert theirs["progress"].pop("micro_batch") is None
    assert_equal(ours, theirs)
