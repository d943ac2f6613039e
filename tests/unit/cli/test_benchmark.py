from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detrkit.cli import app


def run(*arguments: str):
    return CliRunner().invoke(app, ["benchmark", *arguments])


def test_json_is_pure_and_files_are_where_they_were_asked_for(tmp_path: Path):
    result = run(
        "detr-tiny", "--repeats", "1", "--warm-up", "0", "--device", "cpu", "--out", str(tmp_path), "--json"
    )
    assert result.exit_code == 0, result.output
    assert [row["model"] for row in json.loads(result.stdout)["rows"]] == ["detr-tiny"]
    assert (tmp_path / "speed.html").is_file()


def test_if_nothing_could_be_measured_the_command_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = run("nothing")
    assert result.exit_code == 1
    assert "nothing could be measured: no file or folder at nothing" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-sizes", "1,x"), "--batch-sizes is '1,x'"),
        (("--precision", "8"), "precision is '8'"),
        (("--backends", "onnx"), "backend is 'onnx'"),
    ],
)
def test_mistakes_exit_with_two(arguments: tuple[str, ...], message: str, tmp_path: Path):
    result = run("detr-tiny", "--out", str(tmp_path), *arguments)
    assert result.exit_code == 2
    assert message in result.output
