from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.config import Config, parse_assignments, read_config, update_config, write_config
from detrkit.errors import ConfigError


def test_an_unknown_key_names_the_nearest_one():
    with pytest.raises(ConfigError, match=r"unknown config key train\.lrr; did you mean train\.lr\?"):
        update_config(Config(), {"train.lrr": 1})


def test_an_unknown_section_names_the_nearest_one():
    with pytest.raises(ConfigError, match=r"trian.*did you mean train\?"):
        update_config(Config(), {"trian": {"lr": 1}})


def test_a_key_of_another_section_is_found():
    with pytest.raises(ConfigError, match=r"did you mean train\.epochs\?"):
        update_config(Config(), {"model.epochs": 3})


def test_a_bad_value_says_what_was_got():
    with pytest.raises(ConfigError, match=r"train\.epochs is -1"):
        update_config(Config(), {"train.epochs": -1})


def test_a_section_cannot_be_set_to_a_value():
    with pytest.raises(ConfigError, match="train is a section"):
        update_config(Config(), {"train": 3})


def test_heads_must_divide_the_features():
    with pytest.raises(ConfigError, match="not a multiple of num_heads"):
        update_config(Config(), {"model.hidden_dim": 100})


def test_update_leaves_the_original_alone():
    config = Config()
    changed = update_config(config, {"train": {"lr": 0.5}})
    assert (config.train.lr, changed.train.lr) == (1e-4, 0.5)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.lr=1e-4", "lr", 1e-4),
        ("train.precision=16", "precision", "16"),
        ("train.ema_decay=null", "ema_decay", None),
        ("train.patience=3", "patience", 3),
    ],
)
def test_assignments_of_the_command_line(text: str, key: str, value: object):
    config = update_config(Config(), parse_assignments([text]))
    assert getattr(config.train, key) == value


def test_an_assignment_without_a_value_is_refused():
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        parse_assignments(["train.lr"])


def test_yaml_round_trip(tmp_path: Path):
    config = update_config(Config(), {"train.lr": 3e-4, "transforms.scales": [100, 200], "data.root": "a b"})
    write_config(config, tmp_path / "c.yaml")
    assert read_config(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- 1", "holds a list"), ("train: {x: 1}", "unknown config key train.x")],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(path)
    assert "c.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_config(tmp_path / "nowhere.yaml")


def test_an_empty_file_changes_nothing(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("")
    assert read_config(tmp_path / "c.yaml") == Config()
