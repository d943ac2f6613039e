"""Training with aids from the command line: what is saved, gone on with, exported and repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import detrkit
from detrkit.checkpoint import AIDS, load_checkpoint, read_model, save_checkpoint
from detrkit.config import AidsConfig, read_config
from detrkit.families.build import read_weights
from detrkit.training import loop
from tests.e2e.conftest import (
    assert_equal,
    records,
    run_here,
    run_until_step_2,
    run_well,
    train_arguments,
    trained,
)

SMALL = {"model__hidden_dim": 32, "model__ffn_dim": 32, "model__decoder_layers": 2, "model__num_queries": 10}
EVERY_AID: dict[str, Any] = {
    **SMALL,
    "model__dropout": 0.1,
    "aids__dense": "aligned",
    "aids__groups": 3,
    "aids__denoising": 2,
    "loss__class_targets": "iou",
    "train__ema_decay": 0.5,
    "train__log_images": 0,
}
# What transformers' DETR has too, so that it can be exported to both layouts.
PUBLISHED = {
    "model__backbone": "resnet18",
    "model__backbone_norm": "frozen",
    "model__pre_norm": False,
    "model__query_reference": False,
    "model__position_at_input": False,
    "model__query_init": "normal",
}


def arguments_for(data: Path, run: Path, epochs: int = 1, preset: str = "detr-tiny", **settings: Any) -> list[str]:
    arguments = train_arguments(data, run, epochs=epochs, **{**EVERY_AID, **settings})
    arguments[arguments.index("detr-tiny")] = preset
    return arguments


@pytest.fixture(scope="module")
def aided(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every aid there is."""
    run = tmp_path_factory.mktemp("runs") / "aided"
    run_well(*arguments_for(tiny_data, run, **PUBLISHED))
    return run


def aids_of(state: dict[str, Any]) -> set[str]:
    return {name for name in state if name.startswith(AIDS)}


def test_aids_are_kept_to_resume_and_nowhere_else(aided: Path):
    last, best = (load_checkpoint(aided / "checkpoints" / f"{name}.pt") for name in ("last", "best"))
    names = {"aids.group_queries", "aids.label_embed.weight"}
    assert names <= aids_of(last["model"])
    assert aids_of(last["ema"]["weights"]) == aids_of(last["model"])
    assert aids_of(best["model"]) == aids_of(best["ema"]["weights"]) == set()
    assert set(last["model"]) - set(best["model"]) == aids_of(last["model"])
    for file in ("best", "last"):
        assert aids_of(read_model(aided / "checkpoints" / f"{file}.pt").state_dict) == set()


def test_exports_carry_none_of_them(aided: Path, tmp_path: Path):
    from safetensors.torch import load_file

    run_well("export", aided, "--format", "published", "--out", tmp_path / "model.pth")
    run_well("export", aided, "--format", "hub", "--out", tmp_path / "hub")
    published = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    own = read_model(aided).state_dict
    assert_equal(published, own)
    hub = load_file(tmp_path / "hub" / "model.safetensors")
    assert not any("aids" in name or "group_queries" in name for name in hub)
    assert_equal(dict(read_weights(tmp_path / "hub")[0].state), own)


def test_the_config_of_the_run_names_its_recipe_and_repeats_it(aided: Path, tmp_path: Path):
    resolved = yaml.safe_load((aided / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["train"]["recipe"] == "fast"
    assert (resolved["aids"]["groups"], resolved["train"]["schedule"]) == (3, "cosine")
    run_well("train", "--config", aided / "config.yaml", "--run", tmp_path / "again")
    assert_equal(trained(tmp_path / "again"), trained(aided))
    assert read_config(tmp_path / "again" / "config.yaml") == read_config(aided / "config.yaml")


@pytest.mark.parametrize(
    "preset", ["detr-tiny", "detr-tiny-two-stage", "rtdetr-nano", pytest.param("dfine-n", marks=pytest.mark.slow)]
)
def test_a_stopped_run_goes_on_to_the_same_weights(preset: str, tiny_data: Path, tmp_path: Path):
    settings = {
        "preset": preset,
        "epochs": 1,
        "aids__groups": 2 if preset == "detr-tiny" else 1,
        "train__init": "none",
    }
    run_well(*arguments_for(tiny_data, tmp_path / "whole", **settings))
    run = tmp_path / "run"
    run_until_step_2(arguments_for(tiny_data, run, **settings))
    assert load_checkpoint(run / "checkpoints" / "last.pt")["progress"]["step"] == 2
    run_well("resume", run)
    assert_equal(trained(run), trained(tmp_path / "whole"))
    assert aids_of(trained(run)["model"])


@pytest.mark.parametrize(
    ("preset", "weight"),
    [
        ("detr-tiny", "transformer.encoder.layers.0.linear1.weight"),
        ("detr-tiny-two-stage", "token_proj.weight"),
        ("rtdetr-nano", "token_proj.weight"),
        pytest.param("dfine-n", "token_proj.weight", marks=pytest.mark.slow),
    ],
)
def test_a_bad_step_with_noised_objects_is_repeated_bit_for_bit(
    preset: str, weight: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train_step = loop.train_step

    def spoil(run: Any, batches: Any, plan: Any) -> None:
        if run.state.progress.step + 1 == 3:
            with torch.no_grad():  # finite before and after it: the loss overflows
                run.state.module.get_parameter(weight).mul_(1e30)
        train_step(run, batches, plan)

    monkeypatch.setattr(loop, "train_step", spoil)
    run = tmp_path / "run"
    groups = 2 if preset == "detr-tiny" else 1
    run_here(
        *arguments_for(
            tiny_data, run, preset=preset, aids__groups=groups, train__max_bad_steps=2, train__init="none"
        )
    )
    found = json.loads(run_well("train", "--replay", run, "--json"))
    assert (found["step"], found["equal"]) == (3, True)


def test_a_two_stage_run_is_evaluated_predicts_and_is_not_exported(tiny_data: Path, tmp_path: Path):
    run = tmp_path / "run"
    run_well(*arguments_for(tiny_data, run, preset="detr-tiny-two-stage", aids__groups=1))
    assert records(run, "eval")[0]["AP"] >= 0
    image = tiny_data / "val2017" / "000001.jpg"
    assert len(detrkit.load(run).predict(image, threshold=0.0)) == 10
    assert aids_of(load_checkpoint(run / "checkpoints" / "last.pt")["model"])
    result = run_here("export", run, "--format", "published", "--out", tmp_path / "model.pth")
    assert result.exit_code == 1
    assert "a two-stage model has no published layout" in result.stderr
    assert list(tmp_path.glob("model*")) == []
    assert run_here("export", run, "--format", "hub", "--out", tmp_path / "hub").exit_code == 1


def test_a_checkpoint_from_before_the_aids_still_works(aided: Path, tmp_path: Path):
    """Its config has ``model.dense_supervision``, no aids and no recipe."""
    payload = load_checkpoint(aided / "checkpoints" / "best.pt")
    config = dict(payload["config"])
    config.pop("aids")
    config["model"] = {**config["model"], "dense_supervision": True}
    config["loss"] = {key: config["loss"][key] for key in config["loss"] if key in ("class_cost", "aux")}
    config["train"] = {key: value for key, value in config["train"].items() if key != "recipe"}
    save_checkpoint(tmp_path / "old.pt", {**payload, "config": config})
    saved = read_model(tmp_path / "old.pt")
    assert saved.config.aids == AidsConfig(dense="center")
    assert saved.config.train.recipe == "auto"
    detrkit.load(tmp_path / "old.pt")
