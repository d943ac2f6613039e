"""Thresholds from choosing to predicting, as a person meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import detrkit
from detrkit.threshold_file import read_thresholds, write_thresholds
from tests.e2e.conftest import Trained, run_here, run_well


@pytest.fixture
def run(tiny_run: Trained, tiny_data: Path, copy_of: Callable[[Path], Path]) -> Path:
    """A run with thresholds."""
    run = copy_of(tiny_run.run)
    out = run_well("thresholds", run, "--data", tiny_data, "--check-split", "train", "--least-objects", 1)
    assert f"Written to {run / 'thresholds.json'}" in out
    assert "WARNING: the model was trained on train" in out
    assert "trained on val" not in out
    return run


def predicted(run: Path, data: Path, out: Path, *words: str | Path) -> list[tuple[str, float]]:
    run_well("predict", run, data / "val2017", "--out", out, *words)
    entries = json.loads((out / "predictions.json").read_text())
    return sorted((Path(entry["file_name"]).name, entry["score"]) for entry in entries)


def test_predict_takes_the_thresholds_of_a_run_and_says_so(run: Path, tiny_data: Path, tmp_path: Path):
    said = run_well("predict", run, tiny_data / "val2017", "--out", tmp_path / "said")
    assert f"Thresholds of {run / 'thresholds.json'}; --threshold SCORE for another" in said
    detector = detrkit.load(run)
    assert detector.thresholds == read_thresholds(run / "thresholds.json", detector.class_map)
    images = sorted((tiny_data / "val2017").iterdir())
    expected = 0
    for found in detector.predict(images, threshold=0.0):
        expected += detector.thresholds.apply(found.confidence, found.class_id).sum()
    assert 0 < expected == len(predicted(run, tiny_data, tmp_path / "own"))
    with_file = predicted(run, tiny_data, tmp_path / "file", "--thresholds", run / "thresholds.json")
    assert len(with_file) == expected


def test_a_threshold_that_is_given_goes_before_those_of_the_run(run: Path, tiny_data: Path, tmp_path: Path):
    everything = predicted(run, tiny_data, tmp_path / "all", "--threshold", "0")
    assert len(everything) > len(predicted(run, tiny_data, tmp_path / "own"))
    assert "Thresholds of" not in run_well(
        "predict", run, tiny_data / "val2017", "--threshold", "0", "--out", tmp_path / "x"
    )
    as_json = run_well("predict", run, tiny_data / "val2017", "--json", "--out", tmp_path / "y")
    assert json.loads(as_json) == json.loads((tmp_path / "y" / "predictions.json").read_text())


def test_two_thresholds_at_once_are_refused(run: Path, tiny_data: Path):
    result = run_here(
        "predict", run, tiny_data / "val2017", "--threshold", "0.5", "--thresholds", run / "thresholds.json"
    )
    assert result.exit_code == 2
    assert "--threshold and --thresholds both" in result.output


def test_a_damaged_file_is_named_and_can_be_made_anew(run: Path, tiny_data: Path):
    (run / "thresholds.json").write_text('{"version": 1}')
    result = run_here("predict", run, tiny_data / "val2017")
    assert result.exit_code == 1
    assert str(run / "thresholds.json") in result.output
    assert "missing required field `classes`" in result.output
    refused = run_here("thresholds", run, "--data", tiny_data)  # it may be somebody else's by now
    assert (refused.exit_code, "move it away" in refused.output) == (2, True)
    (run / "thresholds.json").unlink()
    run_well("thresholds", run, "--data", tiny_data)
    assert detrkit.load(run).thresholds is not None


def test_thresholds_of_other_classes_are_refused(run: Path, tiny_data: Path, tmp_path: Path):
    own = detrkit.load(run).thresholds
    assert own is not None
    content = own.to_dict()
    content["classes"][0]["name"] = "zebra"
    write_thresholds(tmp_path / "other.json", own.from_dict(content))
    result = run_here("predict", run, tiny_data / "val2017", "--thresholds", tmp_path / "other.json")
    assert result.exit_code == 2
    assert "classes that the model does not have ('zebra')" in result.output


def test_evaluation_uses_no_thresholds(run: Path, tiny_run: Trained, tiny_data: Path):
    with_them, without = (
        detrkit.evaluate(folder, tiny_data, explain=False, resamples=0) for folder in (run, tiny_run.run)
    )
    assert with_them["AR100"] == without["AR100"]
    assert with_them["AP"] == without["AP"]


def test_thresholds_go_with_an_exported_model(run: Path, tmp_path: Path):
    out = detrkit.export(run, tmp_path / "exported.pth", layout="published")
    assert (tmp_path / "exported.thresholds.json").is_file()
    exported, own = detrkit.load(out, "detr-tiny"), detrkit.load(run)
    assert exported.thresholds is not None
    assert [(entry.name, entry.score, entry.own) for entry in exported.thresholds.classes] == [
        (entry.name, entry.score, entry.own) for entry in own.thresholds.classes
    ]
