"""Runs that go on otherwise than they were begun: what is taken, what is refused, and that nothing is ignored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
from detrkit.checkpoint import CheckpointStore
from detrkit.config import Config, flat_changes, update_config
from detrkit.curation.synthetic import write_synthetic
from detrkit.errors import ConfigError, DataError, UsageError
from detrkit.training.resuming import FIXED, check_same_data, choices_kept, resumed_config

SMALL: dict[str, Any] = {"transforms.scales": [64], "transforms.eval_size": 64, "model.encoder_layers": 1}
COMMAND = {**SMALL, "data.workers": 0, "train.device": "cpu", "train.trackers": [], "train.recipe": "auto"}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run of one epoch on it."""
    folder = tmp_path_factory.mktemp("begun")
    write_synthetic(folder / "here", train_images=4, val_images=1, size=64)
    write_synthetic(folder / "another", train_images=4, val_images=1, size=64, seed=1)
    named = {f"data.{split}_annotations": f"annotations/instances_{split}2017.json" for split in ("train", "val")}
    begin(folder, say=lambda _line: None, changes={**COMMAND, **named})
    return folder


def begin(folder: Path, **options: Any) -> Any:
    """Give the command that began the run; a second time with ``go_on``."""
    given: dict[str, Any] = {"model": "detr-tiny", "data": folder / "here", "epochs": 1, "batch_size": 2}
    return detrkit.train(run=folder / "run", init="none", **{**given, "changes": COMMAND, **options})


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    """A copy of the run; its data is that of the first."""
    shutil.copytree(begun / "run", tmp_path / "run")
    (tmp_path / "here").symlink_to(begun / "here")
    return tmp_path


def other_value(key: str) -> Any:
    """Return a value that is not the default."""
    value = flat_changes(Config().model_dump())[key]
    others = {
        "train.init": "published",
        "train.recipe": "fast",
        "train.freeze": ["backbone"],
        "train.only": ["mask_head"],
        "train.lr_scale": {"x": 2.0},
        "train.muon": 0.5,
    }
    others |= {"transforms.mean": [0.1, 0.1, 0.1], "transforms.std": [1.0, 1.0, 1.0], "train.layer_decay": 0.5}
    return others.get(
        key, (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int) else None
    )


def test_what_cannot_be_changed_is_refused_with_its_name_and_why():
    keys = [key for key in FIXED if "." in key] + ["model.num_queries", "aids.groups"]
    assert set(keys) <= flat_changes(Config().model_dump()).keys()
    for key in keys:
        with pytest.raises(ConfigError, match=rf"cannot change {key} from .* to .*detrkit train --init RUN"):
            resumed_config(
                update_config(Config(), {"model.masks": True}), {key: other_value(key), "train.epochs": 99}
            )


def test_what_can_be_changed_is_taken_and_told_whatever_it_is():
    asked = {"train.epochs": 99, "train": {"lr": 0.5}, "data.workers": 3, "train.precision": "bf16"}
    asked |= {"transforms.recipe": "mosaic", "loss.l1_weight": 2.0, "train.patience": 5, "train.clip_norm": 1.0}
    config, lines = resumed_config(Config(), asked)
    assert config == update_config(Config(), asked)
    assert {"changed: train.epochs from 50 to 99", "changed: train.lr from 0.0001 to 0.5"} <= set(lines)
    assert resumed_config(config, asked) == (config, [])
    assert resumed_config(config, {}) == (config, [])


def test_the_same_command_again_changes_nothing(folder: Path):
    said: list[str] = []
    assert choices_kept({"train.micro_batch": "auto", "train.epochs": 2}) == {"train.epochs": 2}
    for more in ({}, {"recipe": "auto"}):
        options: dict[str, Any] = {"say": said.append, "go_on": True, **more}
        assert begin(folder, **options).epochs == 1
    assert not [line for line in said if "chang" in line]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"model": "detr-tiny-two-stage"}, "model.preset from detr-tiny to detr-tiny-two-stage"),
        ({"batch_size": 3}, "train.batch_size from 2 to 3"),
        ({"changes": {**COMMAND, "model.encoder_layers": 2}}, "model.encoder_layers from 1 to 2"),
        ({"recipe": "plain"}, "train.recipe is asked for twice, as auto and as plain"),
        ({"changes": {**COMMAND, "train.recipe": "plain"}}, "train.recipe from fast to plain"),
    ],
)
def test_train_with_resume_refuses_what_the_run_is_not(asked: dict[str, Any], words: str, folder: Path):
    with pytest.raises(UsageError, match=words):
        begin(folder, go_on=True, say=print, **asked)


def test_train_with_resume_takes_epochs_rate_and_a_config_file(folder: Path):
    (folder / "more.yaml").write_text("train: {patience: 7}\n")
    result = begin(folder, epochs=2, lr=0.5, config=folder / "more.yaml", go_on=True, say=lambda _line: None)
    assert result.epochs == 2
    saved = CheckpointStore(folder / "run").load_latest()
    assert [saved["config"]["train"][key] for key in ("epochs", "lr", "patience")] == [2, 0.5, 7]


def test_a_changed_rate_reaches_optimiser_and_schedule(toy: Any, make_config: Callable[..., Config]):
    toy.fit(make_config(epochs=1, schedule="constant"))
    payload = CheckpointStore(toy.run_dir).load_latest()
    changes = {"epochs": 2, "lr": 0.25, "backbone_lr": 0.125, "weight_decay": 0.5, "schedule": "constant"}
    toy.fit(make_config(**{**changes, "warmup_steps": 8}), resume=payload)
    lines = [json.loads(line) for line in (toy.run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["lr"] for line in steps if line["epoch"] == 2] == [0.25, 0.25, 0.25]
    groups = CheckpointStore(toy.run_dir).load_latest()["optimizer"]["param_groups"]
    assert {group["lr"] for group in groups} == {0.25, 0.125}
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}
    # and with it the weights
    changed = toy.evaluated[-1]
    toy.fit(make_config(epochs=2, schedule="constant"), resume=payload)
    assert not torch.equal(changed["class_embed.weight"], toy.evaluated[-1]["class_embed.weight"])


def test_a_run_follows_its_data_and_no_other(folder: Path, begun: Path):
    hidden, moved = begun / "here", Path(shutil.copytree(begun / "here", folder / "moved"))
    hidden.rename(begun / "gone")
    try:
        with pytest.raises(UsageError, match="no such"):
            detrkit.resume(folder / "run", epochs=2, say=print)
        with pytest.raises(DataError, match=r"not the data that the run was begun with.*--data DATA"):
            detrkit.resume(folder / "run", data=begun / "another", epochs=2, say=print)
        result = detrkit.resume(folder / "run", data=moved, epochs=2, say=lambda _line: None)
        assert result.epochs == 2
        data = CheckpointStore(folder / "run").load_latest()["config"]["data"]
        assert data["root"] == str(moved)
        assert data["train_annotations"] == str(moved / "annotations" / "instances_train2017.json")
    finally:
        (begun / "gone").rename(hidden)


def test_a_checkpoint_of_before_knows_nothing_of_its_data():
    check_same_data({}, None)  # type: ignore[arg-type]
