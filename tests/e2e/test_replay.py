"""A bad step of a real model, and ``detrkit train --replay``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.config import Config
from detrkit.families.build import build_model
from detrkit.nn.transformer import EncoderLayer
from detrkit.training.forward_backward import step_seed
from tests.e2e.conftest import records, run_well, train_arguments
from tests.e2e.test_proofs import CLASSES, tiny_config

BAD_STEP = 3


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
