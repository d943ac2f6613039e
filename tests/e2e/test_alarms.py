"""Real trainings that go wrong in the known ways say so, and sound ones say nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detrkit.training import loop
from detrkit.training.session import Run
from detrkit.training.step import StepPlan
from detrkit.types import Batch
from tests.e2e.conftest import Trained, records, run_well, train_arguments

LONG = 51  # epochs: 306 steps


def alarms(run: Path) -> dict[str, str]:
    """What was said, by its kind."""
    messages = [record["message"] for record in records(run, "event")]
    found = [message.split(": ", 1) for message in messages if message.startswith(("ALARM", "REMARK"))]
    assert len({kind for kind, _ in found}) == len(found), "an alarm was repeated within a few hundred steps"
    return {kind.split()[1]: text for kind, text in found}


@pytest.fixture
def train(tiny_data: Path, tmp_path: Path) -> Callable[..., dict[str, str]]:
    def run(epochs: int, **settings: Any) -> dict[str, str]:
        folder = tmp_path / "run"
        settings = {"train__eval_every": 99, "train__log_images": 0, "train__log_every": 10, **settings}
        run_well(*train_arguments(tiny_data, folder, epochs, **settings))
        return alarms(folder)

    return run


def test_short_sound_training_is_silent_and_shows_how_it_is(tiny_run: Trained):
    assert alarms(tiny_run.run) == {}
    last = records(tiny_run.run, "step")[-1]
    assert 0 <= last["objects_share"] <= 1
    assert 0 < last["matched_share"] < 1


def test_batch_with_spoiled_boxes_is_named(train: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch):
    spoiled: list[tuple[int, ...]] = []
    step = loop.train_step

    def spoil(run: Run, batches: list[Batch], plan: StepPlan) -> None:
        if run.state.progress.step == 57:
            (batch,) = batches
            boxes = batch.truth.boxes_cxcywh * 64  # pixels, where shares are expected
            batches = [dataclasses.replace(batch, truth=dataclasses.replace(batch.truth, boxes_cxcywh=boxes))]
            spoiled.append(batch.image_ids)
        step(run, batches, plan)

    monkeypatch.setattr(loop, "train_step", spoil)
    found = train(11)
    assert list(found) == ["loss_spike"]
    assert found["loss_spike"].startswith("step 58 had a loss of")
    assert f"its images: {', '.join(map(str, spoiled[0]))}. " in found["loss_spike"]


@pytest.mark.slow
def test_long_sound_training_is_silent(train: Callable[..., dict[str, str]]):
    assert train(LONG) == {}


@pytest.mark.slow
@pytest.mark.parametrize("times", [30, 100])
def test_learning_rate_far_too_high(train: Callable[..., dict[str, str]], times: int):
    found = train(LONG, train__lr=1e-3 * times, train__backbone_lr=1e-3 * times)
    assert "lr_too_high" in found or "same_boxes" in found
    assert "lr_too_low" not in found


@pytest.mark.slow
def test_learning_rate_far_too_low(train: Callable[..., dict[str, str]]):
    assert list(train(LONG, train__lr=1e-6, train__backbone_lr=1e-6)) == ["lr_too_low"]


@pytest.mark.slow
def test_no_object_weighs_too_much(train: Callable[..., dict[str, str]]):
    found = train(LONG, loss__no_object_weight=10)
    assert "Lower loss.no_object_weight from 10 to 0.1" in found["no_objects"]
