"""``detrkit plot`` on the runs of the real command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import STEPS, Trained, run_here, run_well


def test_page_of_a_run_lies_in_its_folder(tiny_run: Trained, copy_of: Callable[[Path], Path]):
    run = copy_of(tiny_run.run)
    out = run_well("plot", run)
    assert out.splitlines()[-1] == f"Written to {run / 'curves.html'}"
    assert f"{STEPS} steps, best AP 0." in out
    page = (run / "curves.html").read_text()
    for text in ("Loss giou", "Learning rate", "APs", "Images a second"):
        assert text in page
    run_well("plot", run)  # again while it trains


def test_several_runs_go_where_nothing_is_lost(
    tiny_run: Trained, copy_of: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    other = copy_of(tiny_run.run)
    assert run_well("plot", tiny_run.run, other).splitlines()[-1] == "Written to curves.html"
    assert run_well("plot", tiny_run.run, other, "--x", "epoch").splitlines()[-1] == "Written to curves-2.html"
    assert len(list(tmp_path.glob("curves*"))) == 2
    picture = tmp_path / "curves.png"
    run_well(
        "plot", tiny_run.run, other, "--out", picture, "--metric", "AP50", "--metric", "loss", "--smooth", "0"
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_asked_wrongly(tiny_run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (["none"], "none does not exist"),
        (["."], "is not a run folder"),
        ([tiny_run.run, "--metric", "los"], "did you mean loss"),
        ([tiny_run.run, "--x", "day"], "expected step, epoch or time"),
        ([tiny_run.run, "--out", "curves.pdf"], "ends in .png or .html"),
    ):
        result = run_here("plot", *arguments)
        assert result.exit_code == 2
        assert said in " ".join(result.output.split())
