"""A bad step of a real model, and ``detrkit train --replay``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.config import Config
from detrkit.families.build import build_model
from detrkit.nn.transformer import EncoderLayer
from detrkit.training import loop
from detrkit.training.forward_backward import step_seed
from tests.e2e.conftest import records, run_here, run_well, train_arguments
from tests.e2e.test_proofs import CLASSES, tiny_config

BAD_STEP = 3


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any, Any], None]], None]:
    """Does something to run and batches before the third step of a training."""
    train_step = loop.train_step

    def install(change: Callable[[Any, Any], None]) -> None:
        def changed(run: Any, batches: Any, plan: Any) -> None:
            if run.state.progress.step + 1 == BAD_STEP:
                change(run, batches)
            train_step(run, batches, plan)

        monkeypatch.setattr(loop, "train_step", changed)

    return install


def plant(name: str) -> Callable[[Any, Any], None]:
    def change(run: Any, _batches: Any) -> None:
        with torch.no_grad():
            weight = run.state.module.get_parameter(name)
            weight[(0,) * weight.ndim] = math.nan

    return change


def test_a_weight_of_the_real_model_is_named_and_the_step_replayed(tiny_data: Path, tmp_path: Path, spoil: Any):
    weight = "transformer.encoder.layers.0.linear1.weight"
    spoil(plant(weight))
    run = tmp_path / "run"
    result = run_here(*train_arguments(tiny_data, run, 2, train__max_bad_steps=2, model__dropout=0.1))
    assert result.exit_code == 1
    assert f"such as {weight}" in result.stderr
    messages = [record["message"] for record in records(run, "event")]
    assert [message.split(" of epoch")[0] for message in messages] == ["step 3", "step 4", "step 5"]
    found = json.loads(run_well("train", "--replay", run, "--json"))
    assert (found["step"], found["equal"]) == (BAD_STEP, True)
    assert found["bad_weights"] == [weight]
    assert found["forward"]["module"] == weight.rpartition(".")[0]
    text = run_well("train", "--replay", run / "nonfinite")
    assert "Repeated bit for bit." in text
    assert f"Where it began: the weight {weight} is not finite before the step" in text


@pytest.mark.parametrize("fault", ["forward", "backward"])
def test_a_fault_in_a_layer_of_the_real_model_is_found(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    """A division by nothing, or the square root of nothing, in the encoder: in one step, known by its seed."""
    seed, forward = step_seed(Config().train.seed, BAD_STEP - 1, 0), EncoderLayer.forward

    def faulty(self: EncoderLayer, *arguments: Any) -> torch.Tensor:
        output = forward(self, *arguments)
        nothing = output - output
        if torch.initial_seed() != seed:
            return output
        return output + (nothing.sqrt() if fault == "backward" else nothing / nothing)

    monkeypatch.setattr(EncoderLayer, "forward", faulty)
    run = tmp_path / "run"
    settings = {"model__dropout": 0.1, "train__precision": "bf16", "train__micro_batch": 3}
    run_well(*train_arguments(tiny_data, run, 1, **settings))
    assert [record["step"] for record in records(run, "step") if record["grad_norm"] is None] == [BAD_STEP]
    found = json.loads(run_well("train", "--replay", run, "--json"))
    assert (found["step"], found["equal"]) == (BAD_STEP, True)
    if fault == "forward":
        assert (found["forward"]["module"], found["forward"]["kind"]) == (
            "transformer.encoder.layers.0",
            "EncoderLayer",
        )
        assert records(run, "event")[0]["message"].startswith("step 3 of epoch 1 is not finite")
        return
    assert math.isfinite(found["values"]["loss"]["now"])
    last = build_model(tiny_config(), CLASSES).model.transformer.encoder.layers
    assert found["backward"]["module"] == f"transformer.encoder.layers.{len(last) - 1}"
    # the root's own gradient is infinite; it is NaN once it is multiplied by 0 or added to its opposite
    assert found["backward"]["operation"] in ("SqrtBackward0", "AddBackward0", "SubBackward0")
