from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from detrkit.config import update_config
from detrkit.curation.synthetic import write_synthetic
from detrkit.families.recipes import preset_config
from detrkit.preflight.report import Outcome, PreflightReport
from detrkit.preflight.run import run_preflight

from .conftest import run_here, train_arguments
from .preflight_faults import PLANTS, plant

QUICK = sorted(PLANTS.keys() - {"other images"})  # shuffled labels take as long, and learn as badly


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preflight") / "data"
    write_synthetic(folder, train_images=60, val_images=30, size=96)
    return folder


def preflight(data: Path, out: Path, **changes: object) -> PreflightReport:
    config = update_config(
        preset_config("detr-tiny"),
        {"data.root": str(data), "transforms.eval_size": 96, "transforms.scales": [96], **changes},
    )
    return run_preflight(config, out, budget_s=1.0, say=lambda _line: None)


def names(verdict: PreflightReport) -> set[str]:
    return {judgement.name for judgement in verdict.of(Outcome.FAULT)}


@pytest.mark.parametrize(
    "model", ["detr-tiny", pytest.param("detr-tiny-two-stage-panoptic", marks=pytest.mark.slow)]
)
def test_sound_set_is_ready_and_everything_is_said(model: str, sound: Path, tmp_path: Path):
    masks = model.endswith("panoptic")
    if masks:
        sound = write_synthetic(tmp_path / "data", train_images=60, val_images=30, size=96, masks=True)
    result = run_here(
        *("preflight", "--model", model, "--data", sound, "--out", tmp_path / "out", "--seconds", "1"),
        *("--set", "transforms.eval_size=96", "--set", "transforms.scales=[96]"),
    )
    assert result.exit_code == 0, result.output
    assert "READY" in result.stdout
    assert "FAULT" not in result.stdout
    assert "WARNING" not in result.stdout
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text(encoding="utf-8"))
    assert verdict["ready"]
    asked = {judgement["name"] for judgement in verdict["judgements"]}
    assert asked >= {"annotations", "objects", "boxes", "labels", "splits", "head", "learning", "time", "memory"}
    learning = next(item for item in verdict["judgements"] if item["name"] == "learning")
    assert learning["figures"]["last_loss"] < 0.9 * learning["figures"]["first_loss"]
    assert ("dice" in learning["found"]) == masks
    page = (tmp_path / "out" / "preflight.html").read_text(encoding="utf-8")
    assert page.count("<img") == 16  # the batch that the model will see
    assert "<svg" in page


@pytest.mark.parametrize("name", [*QUICK, pytest.param("other images", marks=pytest.mark.slow)])
def test_planted_fault_is_named(name: str, sound: Path, tmp_path: Path):
    change, expected = PLANTS[name]
    verdict = preflight(plant(sound, tmp_path / "data", change), tmp_path / "out")
    assert not verdict.ready
    assert names(verdict) >= expected
    assert expected.pop() in verdict.summary()


@pytest.mark.slow
def test_ids_that_come_round_are_seen_between_splits(sound: Path, tmp_path: Path):
    def turn(content: dict, random: np.random.Generator) -> None:
        ids = sorted(entry["id"] for entry in content["categories"])
        for entry in content["annotations"]:
            entry["category_id"] = ids[(ids.index(entry["category_id"]) + 1) % len(ids)]

    verdict = preflight(plant(sound, tmp_path / "data", turn, ("train",)), tmp_path / "out")
    assert "class_ids_off_by_one" in names(verdict)


@pytest.mark.parametrize(
    ("lr", "fault"),
    [(1e-1, "learning_rate_too_high"), pytest.param(1e-8, "loss_does_not_fall", marks=pytest.mark.slow)],
)
def test_learning_rate_far_off_is_named(lr: float, fault: str, sound: Path, tmp_path: Path):
    changes = {"train.lr": lr, "train.backbone_lr": lr, "train.recipe": "plain"}
    (found,) = preflight(sound, tmp_path / "out", **changes).of(Outcome.FAULT)
    assert (found.name, "0.0001" in found.advice) == (fault, lr == 1e-1)  # the usual rate of this recipe


@pytest.mark.slow
def test_head_of_another_data_set_is_named(sound: Path, tmp_path: Path):
    run = tmp_path / "run"
    assert run_here(*train_arguments(sound, run, epochs=1)).exit_code == 0
    own = run_here("preflight", "--model", run, "--data", sound, "--out", tmp_path / "own", "--seconds", "1")
    assert own.exit_code == 0, own.output

    def rename(content: dict, random: np.random.Generator) -> None:
        for entry in content["categories"]:
            entry["name"] = f"other {entry['id']}"

    other = plant(sound, tmp_path / "data", rename)
    result = run_here("preflight", "--model", run, "--data", other, "--out", tmp_path / "other", "--seconds", "1")
    assert result.exit_code == 1
    assert "NOT READY: head_not_replaced" in result.stdout
    replaced = run_here(
        *("preflight", "--model", "detr-tiny", "--init", run, "--data", other, "--out", tmp_path / "new"),
        *("--seconds", "1", "--set", "transforms.eval_size=96", "--set", "transforms.scales=[96]"),
    )
    assert "head_not_replaced" not in replaced.stdout
    assert replaced.exit_code == 0, replaced.output


def test_missing_validation_split_is_a_fault_not_a_crash(sound: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(sound, data)
    (data / "annotations" / "instances_val2017.json").write_text('{"images": [', encoding="utf-8")
    verdict = preflight(data, tmp_path / "out")
    assert "data_unreadable" in names(verdict)
