from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.config import Config, update_config
from detrkit.errors import UsageError
from detrkit.families.recipes import preset_config
from detrkit.tuning.space import Dimension, Space, default_space, read_space


@pytest.fixture
def tiny() -> Config:
    """Without an average of its own, whose decay the default space would hold besides."""
    return update_config(preset_config("detr-tiny"), {"train.ema_decay": None})


def read(tmp_path: Path, text: str, config: Config) -> Space:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return read_space(path, config)


def names_of(space: Space) -> set[str]:
    return {part.name for part in space.dimensions}


def test_ranges_and_choices_are_read(tmp_path: Path, tiny: Config):
    text = """
train.lr: {low: 1e-5, high: 1e-3, log: true}
train.warmup_steps: {low: 0, high: 200, step: 50}
train.backbone_lr: {low: 0.1, high: 1, times: train.lr}
transforms:
  recipe: [detr, light]
  scales: [[64], [64, 96]]
train.ema_decay: [null, 0.99]
"""
    space = read(tmp_path, text, tiny)
    by_key = {part.key: part for part in space.dimensions}
    assert by_key["train.lr"] == Dimension("train.lr", 1e-5, 1e-3, log=True)
    assert by_key["train.warmup_steps"] == Dimension("train.warmup_steps", 0, 200, step=50, integer=True)
    assert by_key["transforms.recipe"].choices == ("detr", "light")
    drawn = {
        "train.lr": 2e-4,
        "train.warmup_steps": 50,
        "train.backbone_lr/train.lr": 0.5,
        "transforms.recipe": "light",
        "transforms.scales": "[64, 96]",
        "train.ema_decay": 0.99,
    }
    assert {part.name for part in space.dimensions} == set(drawn)
    config = space.apply(tiny, drawn)
    assert (config.train.lr, config.train.backbone_lr, config.train.warmup_steps) == (2e-4, 1e-4, 50)
    assert (config.transforms.scales, config.transforms.photometric) == ((64, 96), 0.3)
    assert config.train.ema_decay == 0.99


# by the text of a space file, what its refusal tells
REFUSED = {
    "train.lrr: {low: 1e-5, high: 1e-3}": "unknown config key train.lrr; did you mean train.lr",
    "train.lr: {low: 1e-3, high: 1e-5}": "from 0.001 to 1e-05; expected low below high",
    "train.lr: {low: .nan, high: 1e-5}": "from nan to 1e-05",
    "train.lr: {low: 0, high: 1e-5, log: true}": "low is 0, expected above 0 with log",
    "train.lr: {low: -1, high: 1}": "train.lr is -1",
    "train.lr: {low: few, high: 1}": '"low": "few"',
    "train.lr: {low: 0.1, high: 1, max: 2}": "unknown field `max`",
    "train.lr: {low: 0.1}": "expected a list of choices, or a range",
    "train.lr: 0.1": "expected a list of choices, or a range",
    "train.lr: {low: 0.1, high: 1, log: true, step: 0.1}": "step is 0.1",
    "train.warmup_steps: {low: 0.5, high: 20}": "train.warmup_steps is 0.5",
    "train.warmup_steps: {low: 10.0, high: 20.0}": "write low and high as whole numbers",
    "transforms.recipe: [detr, detr]": "two or more different values",
    "transforms.recipe: [detr, heavy]": "transforms.recipe is 'heavy'",
    "data.root: [a, b]": "data.root cannot be searched",
    "train.backbone_lr: {low: 0.1, high: 1, times: train.speed}": "unknown config key train.speed",
    "train.backbone_lr: {low: 0.1, high: 1, times: train.init}": "not a number above 0",
    "- train.lr": "holds a list",
    "": "holds nothing",
    "a: [": "not valid YAML",
    "train.lr: [1, 2]\ntrain: {lr: [1, 3]}": "stands there twice",
}


def test_a_space_that_cannot_be_is_refused(tmp_path: Path, tiny: Config):
    for text, message in REFUSED.items():
        with pytest.raises(UsageError) as caught:
            read(tmp_path, text, tiny)
        assert message in str(caught.value), text
        assert str(tmp_path / "space.yaml") in str(caught.value)
    with pytest.raises(UsageError, match="cannot read"):
        read_space(tmp_path / "none.yaml", tiny)


def test_the_default_space_holds_the_configs_own_values(tiny: Config):
    for config in (tiny, preset_config("detr-tiny"), preset_config("detr-r50")):
        space = default_space(config, steps=100_000)
        own, outside = space.own_parameters(config)
        assert not outside
        assert set(own) == names_of(space)
        assert space.apply(config, own) == config


def test_the_default_space_leaves_out_what_has_no_effect(tiny: Config):
    names = names_of(default_space(tiny, steps=20))
    assert "train.drop_at" not in names  # a cosine has no drop
    assert "train.ema_decay" not in names  # too few steps to average over
    assert "train.drop_at" in names_of(default_space(preset_config("detr-r50"), steps=20))
    frozen = update_config(tiny, {"train.backbone_lr": 0, "train.weight_decay": 0})
    assert names_of(default_space(frozen, steps=20)) == {"train.lr", "transforms.recipe"}
