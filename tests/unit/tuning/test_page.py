from __future__ import annotations

import re
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from detrkit.config import Config, update_config
from detrkit.tuning.run import run_tuning
from tests.unit.tuning.conftest import Played


def quiet(_message: str) -> None: ...


def by_rate(config: Config, epoch: int) -> float:
    return epoch / 3 * float(np.exp(-abs(np.log10(config.train.lr / 1e-3))))


@pytest.mark.slow
def test_the_page_shows_the_search_and_leaves_pyplot_as_it_was(config: Config, tmp_path: Path):
    former = dict(matplotlib.rcParams)
    evil = tmp_path / "<script>alert(1)<"
    evil.symlink_to(config.data.root or "")
    config = update_config(config, {"data.root": str(evil), "train.ema_decay": None})
    space = tmp_path / "space.yaml"
    space.write_text("train.lr: {low: 1e-5, high: 1e-2, log: true}\ntrain.ema_decay: [null, 0.9]")
    out = tmp_path / "s"
    run_tuning(config, out, trials=6, space=space, pruner="none", say=quiet, train=Played(by_rate))
    page = (out / "tune.html").read_text(encoding="utf-8")
    for text in ("Best AP", "AP of each trial", "AP by epoch", "What mattered", "Each parameter", "mostly chance"):
        assert text in page
    assert page.count("data:image/jpeg") == 4
    assert "<script src" not in page
    assert not re.search(r"(href|src)=\"(?!#|data:)", page)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    with Image.open(out / "tune.png") as picture:
        assert picture.size[0] > 400
        assert len(picture.getcolors(1 << 20) or []) > 10
    assert dict(matplotlib.rcParams) == former
    assert sys.modules["matplotlib.pyplot"].get_fignums() == []
