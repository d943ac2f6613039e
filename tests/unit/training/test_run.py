"""Runs begun and gone on with: which config counts, and where its paths lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.checkpoint import CheckpointStore
from detrkit.config import Config, read_config, update_config, write_config
from detrkit.curation.synthetic import write_synthetic
from detrkit.errors import UsageError
from detrkit.families.recipes import preset_config
from detrkit.training.run import absolute_paths, resume_run, start_run


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = write_synthetic(tmp_path / "shapes", train_images=4, val_images=1, size=64)
    small = {"transforms.scales": [64], "transforms.eval_size": 64, "data.workers": 0, "model.encoder_layers": 1}
    train = {"train.epochs": 1, "train.batch_size": 2, "train.device": "cpu", "train.trackers": []}
    return update_config(preset_config("detr-tiny"), {**small, **train, "data.root": str(data)})


def test_the_config_of_the_checkpoint_counts_and_an_edited_printout_is_told(config: Config, tmp_path: Path):
    run, said = tmp_path / "run", list[str]()
    start_run(config, run, said.append)
    printout = run / "config.yaml"
    resume_run(run, said.append)
    assert not any("was changed" in line for line in said)

    write_config(update_config(read_config(printout), {"train.epochs": 7, "train.lr": 0.5}), printout)
    ended = resume_run(run, said.append)
    assert (ended.epochs, ended.stopped) == (1, "finished")
    (line,) = (line for line in said if "was changed" in line)
    assert "train.epochs is 7 there and 1 in the checkpoint" in line
    assert "train.lr is 0.5 there" in line

    assert resume_run(run, said.append, {"train.epochs": 2}).epochs == 2
    assert read_config(printout).train.epochs == 2
    saved = CheckpointStore(run).load_latest()["config"]["train"]
    assert (saved["epochs"], saved["lr"]) == (2, config.train.lr)

    printout.write_text("train: {")
    resume_run(run, said.append)
    assert "not valid YAML" in said[-2]


def test_a_run_without_a_checkpoint_begins_from_its_printout(config: Config, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UsageError, match="is not a run folder"):
        resume_run(run, print)
    write_config(config, run / "config.yaml")
    assert resume_run(run, lambda _line: None).steps == 2


def test_paths_hold_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "boxes.json").touch()
    (tmp_path / "published").mkdir()  # a word is no path
    given = {"root": "data", "train_images": "images", "train_annotations": "boxes.json", "val_images": "nowhere"}
    found = absolute_paths(update_config(Config(), {"data": given, "train.init": "published"}))
    assert found.data.root == str(tmp_path / "data")
    assert found.data.train_images == str(tmp_path / "data" / "images")
    assert found.data.train_annotations == str(tmp_path / "boxes.json")
    assert (found.data.val_images, found.train.init) == ("nowhere", "published")
