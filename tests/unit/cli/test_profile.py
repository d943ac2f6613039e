from __future__ import annotations

import json
from pathlib import Path

import pytest

from detrkit.config import update_config, write_config
from detrkit.curation.synthetic import write_synthetic
from detrkit.families.recipes import preset_config
from tests.e2e.conftest import run_here, run_well


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with nothing but its config: enough to know what would be trained."""
    data = write_synthetic(tmp_path / "shapes", train_images=4, val_images=1, size=64)
    changes = {"data.root": str(data), "transforms.scales": [64], "train.batch_size": 2, "train.device": "cpu"}
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(update_config(preset_config("detr-tiny"), changes), folder / "config.yaml")
    return folder


def test_a_run_is_watched_with_its_own_config(run: Path, tmp_path: Path):
    out = tmp_path / "out"
    text = run_well("profile", run, "--steps", "1", "--out", out, "--json", "--set", "train.accumulate=2")
    found = json.loads(text)
    assert found["model"] == "detr-tiny"
    assert (found["batch_size"], found["accumulate"]) == (2, 2)
    assert found == json.loads((out / "profile.json").read_text())
    assert (out / "profile.html").is_file()
    # nothing is trained for good
    assert {path.name for path in run.iterdir()} == {".detrkit-written", "config.yaml"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a run folder"),
        (["nowhere", "--model", "detr-tiny"], "give one of them"),
        (["--model", "detr-tiny"], "no data given"),
        (["--model", "detr-tiny", "--data", "nowhere"], "nowhere"),
        (["--set", "train.precison=bf16"], "train.precision"),
    ],
)
def test_wrong_questions_exit_with_2(arguments: list[str], message: str):
    result = run_here("profile", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
