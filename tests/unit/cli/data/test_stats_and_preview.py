"""``detrkit data stats`` and ``detrkit data preview``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detrkit.cli import app
from detrkit.curation.synthetic import write_synthetic

SMALL = ["--set", "transforms.scales=[96]", "--set", "transforms.eval_size=96", "--set", "transforms.crop=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("cli") / "shapes", train_images=10, val_images=5, size=64)


def run(*words: object):
    return CliRunner().invoke(app, ["data", *map(str, words)])


def test_stats_print_tables_and_write_a_page(data: Path, tmp_path: Path):
    result = run("stats", data, "--html", tmp_path / "page.html", *SMALL)
    assert result.exit_code == 0, result.output
    for expected in ("images", "classes with objects", "disc", "At the model's input", "median"):
        assert expected in result.output
    assert result.output.splitlines()[-1] == f"Written to {tmp_path / 'page.html'}"
    assert "shapes: data set" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_stats_as_json_are_nothing_but_json_and_one_split_can_be_chosen(data: Path):
    result = run("stats", data, "--json", *SMALL)
    values = json.loads(result.stdout)
    assert list(values["splits"]) == ["train", "val", "all"]
    assert values["splits"]["all"]["images"] == 15
    assert values["inputs"]["eval"]["objects"] == values["splits"]["train"]["objects"]
    assert list(json.loads(run("stats", data, "--split", "valid", "--json", *SMALL).stdout)["splits"]) == ["val"]
    result = run("stats", data, "--split", "test")
    assert result.exit_code == 2
    assert "has no split 'test'; it has train, val" in result.output


def test_preview_writes_pictures_and_says_where(data: Path, tmp_path: Path):
    out = tmp_path / "out"
    result = run("preview", data, "--count", 2, "--draws", 1, "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"2 pictures in {out}; all on one page: {out / 'preview.html'}"
    assert len(list(out.glob("*.png"))) == 2
    assert "transforms.crop=0" in (out / "preview.html").read_text(encoding="utf-8")


def test_previews_are_not_overwritten(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("preview", "preview-2"):
        assert run("preview", data, "--count", 1, "--draws", 0).exit_code == 0
        assert (tmp_path / folder / "preview.html").is_file()


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["--class", "discc"], 2, "did you mean disc?"),
        (["--model", "detr-r5"], 2, "did you mean detr-r50"),
        (["--layout", "word"], 2, "--layout is 'word'"),
    ],
)
def test_what_is_asked_wrongly_is_said(data: Path, tmp_path: Path, words, code: int, problem: str):
    result = run("preview", data, "--out", tmp_path / "out", *words)
    assert result.exit_code == code
    assert problem in result.output
    assert not (tmp_path / "out" / "preview.html").exists()
