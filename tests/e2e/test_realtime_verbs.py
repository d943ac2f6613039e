"""Every verb that DETR goes through, on the two real-time families in their smallest sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import detrkit
from detrkit.threshold_file import read_thresholds
from tests.e2e.conftest import Trained, records, run_here, run_well, train_arguments

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "model__hidden_dim": 32,
    "model__encoder_dim": 32,
    "model__ffn_dim": 32,
    "model__encoder_ffn_dim": 32,
    "model__decoder_layers": 2,
    "model__num_queries": 10,
    "train__init": "none",
    "train__log_images": 0,
    "train__trackers": [],
}


def arguments_for(preset: str, data: Path, run: Path, **settings: Any) -> list[str]:
    arguments = train_arguments(data, run, 1, **{**SMALL, **settings})
    arguments[arguments.index("detr-tiny")] = preset
    return arguments


def options_of(arguments: list[str]) -> list[str]:
    """The settings of a training, for other verbs."""
    return arguments[arguments.index("--set") :]


@pytest.fixture(scope="module", params=["rtdetr-nano", "dfine-n"])
def preset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trained_run(preset: str, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    run = tmp_path_factory.mktemp("realtime") / preset
    return Trained(run, run_well(*arguments_for(preset, tiny_data, run)), "")


def test_training_says_what_it_counts_by_its_own_steps(trained_run: Trained):
    assert "6 steps of 4 images in 1 epochs" in trained_run.out
    assert records(trained_run.run, "eval")[0]["AP"] >= 0


def test_reports_comparisons_and_thresholds(
    trained_run: Trained, tiny_run: Trained, tiny_data: Path, tmp_path: Path
):
    run = trained_run.run
    run_well("eval", run, "--data", tiny_data, "--out", tmp_path / "eval", "--resamples", 10, "--latency", 2)
    content = json.loads((tmp_path / "eval" / "metrics.json").read_text(encoding="utf-8"))
    assert content["images"] == 8
    assert (tmp_path / "eval" / "report.html").stat().st_size > 10_000

    models = [run, tiny_run.run, tmp_path / "eval" / "detections.json"]
    options = ["--out", tmp_path / "compare", "--resamples", 10, "--latency", 2, "--json"]
    compared = json.loads(run_well("compare", *models, "--data", tiny_data, *options))
    ours, _, file = compared["models"]
    assert (ours["AP"], ours["cost"]["parameters"] > 0) == (file["AP"], True)

    run_well("thresholds", run, "--data", tiny_data, "--out", tmp_path / "t.json", "--least-objects", 1)
    read_thresholds(tmp_path / "t.json", detrkit.load(run).class_map)


def test_profile_preflight_and_tune(preset: str, tiny_data: Path, tmp_path: Path):
    options = options_of(arguments_for(preset, tiny_data, tmp_path))
    common = ["--model", preset, "--data", tiny_data]
    run_well("profile", *common, *options, "--steps", 2, "--out", tmp_path / "profile")
    assert any((tmp_path / "profile").iterdir())

    ready = tmp_path / "preflight"
    # however few steps that are: a loss that has not fallen by then gets more
    run_well("preflight", *common, *options, "--out", ready, "--seconds", 1)
    verdict = json.loads((ready / "verdict.json").read_text(encoding="utf-8"))
    assert verdict["ready"]
    named = {item["name"] for item in verdict["judgements"]}
    assert "learning" in named
    assert "term_rises" not in named
    slow = [*options, "--set", "train.lr=1e-8", "--set", "train.backbone_lr=1e-8"]
    result = run_here("preflight", *common, *slow, "--out", tmp_path / "slow", "--seconds", 1)
    assert result.exit_code == 1
    assert "NOT READY: loss_does_not_fall" in result.stdout

    study = tmp_path / "study"
    run_well("tune", *common, *options, "--out", study, "--epochs", 1, "--trials", 2, "--no-prune")
    assert (study / "best.yaml").is_file()


def test_speed_of_both(preset: str):
    [row] = detrkit.benchmark(preset, devices=["cpu"], repeats=1, warm_up=0).rows
    assert not row.problem
