from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.config import Config, update_config
from detrkit.errors import TrainingError
from detrkit.tuning.lr_range import judge, run_lr_range

RATES = np.geomspace(1e-7, 1, 120).tolist()


def curve(falls_at: float, rises_at: float, noise: float = 0.0, seed: int = 0) -> list[float]:
    """Losses of a model that begins to learn at one rate and is destroyed at another."""
    random = np.random.default_rng(seed)
    rates = np.array(RATES)
    fall = 10 / (1 + np.exp(-3 * np.log10(rates / falls_at)))
    rise = 60 / (1 + np.exp(-6 * np.log10(rates / rises_at)))
    return (20 - fall + rise + noise * random.standard_normal(len(rates))).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_suggestion_lies_where_the_loss_falls(seed: int):
    found = judge(RATES, curve(1e-3, 0.5, noise=1.0, seed=seed), configured=1e-4)
    assert 1e-4 < found.suggested < 1e-2
    assert found.suggested <= found.steepest * 1.1
    assert found.lowest < 0.5


def test_a_loss_that_never_falls_is_an_error():
    with pytest.raises(TrainingError, match=r"fell at no learning rate.*detrkit preflight"):
        judge(RATES, [20.0] * len(RATES), 1e-4)


def test_a_real_training_gives_a_rate_and_a_picture(config: Config, tmp_path: Path):
    said: list[str] = []
    changes = {"transforms.scales": [32], "transforms.eval_size": 32, "train.batch_size": 4, "train.accumulate": 2}
    found = run_lr_range(update_config(config, changes), tmp_path / "lr", steps=40, say=said.append)
    assert json.loads((tmp_path / "lr" / "lr_range.json").read_text(encoding="utf-8")) == found.to_dict() | {
        name: list(found.to_dict()[name]) for name in ("rates", "losses", "smoothed")
    }
    assert found.rates[0] == pytest.approx(1e-7)
    assert len(found.losses) == len(found.rates) == len(found.smoothed)
    assert 1e-4 < found.suggested < 1e-2  # detr-tiny's own is 1e-3
    with Image.open(tmp_path / "lr" / "lr_range.png") as picture:
        assert picture.size[0] > 600
    assert any("step" in line for line in said)
    assert "train.lr=" in "\n".join(found.lines())
