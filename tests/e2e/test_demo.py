"""The demo, on so few images that nothing is learned, but with everything that it makes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from detrkit.config import read_config
from tests.e2e.conftest import run_here, run_well

demo = importlib.import_module("detrkit.cli.demo")  # the package itself has the command under this name


@pytest.mark.parametrize(
    "preset",
    [
        "detr-tiny-two-stage",
        *(pytest.param(f"detr-tiny{end}", marks=pytest.mark.slow) for end in ("", "-panoptic")),
    ],
)
def test_everything_is_made(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "VAL_IMAGES", 12)
    out = tmp_path / "demo"
    choice = [] if preset == demo.PRESET else ["--model", preset]
    found = run_well("demo", "--out", out, "--images", "16", "--epochs", "1", *choice)
    assert preset in found
    assert read_config(out / "run" / "config.yaml").model.preset == preset
    assert read_config(out / "run" / "config.yaml").train.recipe == "fast"
    for path in ("run/curves.png", "eval/report.html", "eval/metrics.json"):
        assert (out / path).stat().st_size > 0, path
    assert len(list((out / "predictions").glob("??????.png"))) == demo.DRAWN


def test_an_unknown_model_is_named(tmp_path: Path):
    refused = run_here("demo", "--out", tmp_path / "demo", "--images", "16", "--model", "detr-tini")
    assert (refused.exit_code, "did you mean detr-tiny" in refused.stderr) == (2, True)
