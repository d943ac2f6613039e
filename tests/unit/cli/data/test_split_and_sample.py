"""``detrkit data split`` and ``detrkit data sample``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detrkit.cli import app
from detrkit.curation.synthetic import write_synthetic


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("cli") / "shapes", train_images=20, val_images=5, size=48)


def run(*words: object):
    return CliRunner().invoke(app, ["data", *map(str, words)])


def test_split_says_what_it_wrote(data: Path, tmp_path: Path):
    out = tmp_path / "out"
    shares = "train=0.6,val=0.2,test=0.2"
    result = run("split", data, "--split", "train", "--shares", shares, "--out", out, "--seed", 3)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "0 groups of near-duplicates kept together"
    assert [line.split(":")[0] for line in lines[1:4]] == ["train", "val", "test"]
    assert lines[-1].startswith(f"Written to {out}; shares of each class are off by")
    assert len(list(out.glob("*/*.jpg"))) == 20


def test_split_as_json_is_nothing_but_json(data: Path, tmp_path: Path):
    result = run("split", data, "--split", "train", "--out", tmp_path / "out", "--no-groups", "--json")
    values = json.loads(result.stdout)
    assert [part["name"] for part in values["parts"]] == ["train", "val"]
    assert sum(part["images"] for part in values["parts"]) == 20
    assert values["path"] == str(tmp_path / "out")


def test_sample_keeps_both_splits(data: Path, tmp_path: Path):
    result = run("sample", data, "--out", tmp_path / "out", "--count", 10)
    assert result.exit_code == 0, result.output
    assert "train: 8 images" in result.output
    assert "val: 2 images" in result.output
    assert result.output.splitlines()[-1] == f"Written to {tmp_path / 'out'}"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["split"], "divided already, into train, val"),
        (["split", "--split", "train", "--shares", "train=0.5"], "sum to 0.5"),
        (["sample", "--count", "1"], "at least one for each of"),
    ],
)
def test_what_is_asked_wrongly_is_said_and_nothing_written(data: Path, tmp_path: Path, words, problem: str):
    result = run(words[0], data, "--out", tmp_path / "out", *words[1:])
    assert result.exit_code == 2
    assert problem in result.output
    assert not (tmp_path / "out").exists()
