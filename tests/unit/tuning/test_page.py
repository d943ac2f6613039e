from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from detrkit.config import Config, update_config
from detrkit.tuning.page import importances
from detrkit.tuning.run import run_tuning
from detrkit.tuning.study import Place, open_study
from tests.unit.tuning.conftest import Played


def quiet(_message: str) -> None: ...


def by_rate(config: Config, epoch: int) -> float:
    return epoch / 3 * float(np.exp(-abs(np.log10(config.train.lr / 1e-3))))


def test_the_page_shows_the_search(config: Config, tmp_path: Path):
    out = tmp_path / "s"
    run_tuning(config, out, trials=14, pruner="none", say=quiet, train=Played(by_rate))
    page = (out / "tune.html").read_text(encoding="utf-8")
    for text in ("Best AP", "AP of each trial", "AP by epoch", "Importance by fANOVA", "Importance by PED-ANOVA"):
        assert text in page
    assert page.count("<svg") == 2 + 2 + 4  # a slice for each of four parameters
    assert "<script src" not in page
    assert "http-equiv" in page
    assert not re.search(r"(href|src)=\"(?!#|data:)", page)
    with Image.open(out / "tune.png") as picture:
        assert picture.size[0] > 800


def test_what_alone_decides_is_most_important(config: Config, tmp_path: Path):
    run_tuning(config, tmp_path / "s", trials=14, pruner="none", say=quiet, train=Played(by_rate))
    found = importances(open_study(Place(tmp_path / "s", None, "s")))
    assert set(found) == {"fANOVA", "PED-ANOVA"}
    for shares in found.values():
        assert max(shares, key=lambda name: shares[name]) == "train.lr"


def test_nothing_is_said_of_alike_trials(config: Config, tmp_path: Path):
    played = Played(lambda _config, _epoch: 0.0)
    run_tuning(config, tmp_path / "s", trials=5, pruner="none", say=quiet, train=played)
    assert importances(open_study(Place(tmp_path / "s", None, "s"))) == {}
    assert "nothing can be said" in (tmp_path / "s" / "tune.html").read_text(encoding="utf-8")


def test_names_from_outside_are_text(config: Config, tmp_path: Path):
    evil = tmp_path / "<script>alert(1)<"
    evil.symlink_to(config.data.root or "")
    config = update_config(config, {"data.root": str(evil)})
    run_tuning(config, tmp_path / "s", trials=1, say=quiet, train=Played(by_rate))
    page = (tmp_path / "s" / "tune.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
