"""Runs begun and gone on with: which config counts, and where its paths lead."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from detrkit.checkpoint import CheckpointStore, load_checkpoint
from detrkit.config import Config, read_config, update_config, write_config
from detrkit.curation.synthetic import write_synthetic
from detrkit.data.split import read_train_split
from detrkit.errors import DataError, UsageError
from detrkit.families.recipes import preset_config, resolve_config
from detrkit.training.optim import lr_factor
from detrkit.training.resuming import absolute_paths
from detrkit.training.run import counted_lines, resume_run, start_run
from detrkit.tuning.lr_range import run_lr_range
from detrkit.tuning.run import run_tuning


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

    edited = update_config(read_config(printout), {"train.epochs": 7, "train.lr": 0.5})
    write_config(edited, printout, own_folder=True)
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


def crowd_only(folder: Path, split: str) -> Path:
    """Make every object of a split a crowd region."""
    (path,) = folder.glob(f"annotations/*{split}*.json")
    content = json.loads(path.read_text())
    content["annotations"] = [{**entry, "iscrowd": 1} for entry in content["annotations"]]
    path.write_text(json.dumps(content))
    return folder


def yolo(folder: Path, line: str | None) -> Path:
    """Write a YOLO data set whose label files have one line each, or that has none."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (64, 48)).save(folder / "images" / split / f"{number}.jpg")
            if line is not None:
                (folder / "labels" / split / f"{number}.txt").write_text(line)
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [box]\n")
    return folder


NOTHING: dict[str, tuple[Callable[[Path], Path], str]] = {
    "crowd": (lambda folder: crowd_only(folder / "shapes", "train"), "are crowd regions"),
    "no label file": (lambda folder: yolo(folder / "yolo", None), "without a label file"),
    "no line": (lambda folder: yolo(folder / "yolo", "0,0.5,0.5,0.2,0.2"), "0,0.5,0.5,0.2,0.2"),
    "empty files": (lambda folder: yolo(folder / "yolo", ""), "no object was read"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_nothing_to_learn_is_an_error_before_the_first_step_in_every_entry(
    case: str, config: Config, tmp_path: Path
):
    make, reason = NOTHING[case]
    config = update_config(config, {"data.root": str(make(tmp_path))})
    entries: dict[str, Callable[[], object]] = {
        "train": lambda: start_run(config, tmp_path / "run", print),
        "lr_range": lambda: run_lr_range(config, tmp_path / "range", say=print),
        "tune": lambda: run_tuning(config, tmp_path / "tune", say=print),
    }
    for enter in entries.values():
        with pytest.raises(DataError) as told:
            enter()
        assert reason in str(told.value)
    assert not (tmp_path / "run" / "checkpoints").exists()
    if case == "no line":  # refused by every reader
        return
    assert "--set data.on_lost_objects=warn" in str(told.value)
    accepted = update_config(config, {"data.on_lost_objects": "warn"})
    assert read_train_split(accepted).index.object_counts().tolist() == [0] * len(read_train_split(accepted).index)


def test_data_that_lost_its_objects_since_is_not_resumed(config: Config, tmp_path: Path):
    start_run(config, tmp_path / "run", lambda _line: None)
    crowd_only(tmp_path / "shapes", "train")
    with pytest.raises(DataError, match="nothing to learn"):
        resume_run(tmp_path / "run", print, {"train.epochs": 2})


def test_without_an_object_to_find_it_is_said_and_the_newest_state_counts(config: Config, tmp_path: Path):
    crowd_only(tmp_path / "shapes", "val")
    run, said = tmp_path / "run", list[str]()
    config = update_config(config, {"train.epochs": 3, "train.patience": 1, "train.trackers": ["tensorboard"]})
    ended = start_run(config, run, said.append)
    assert (ended.stopped, ended.epochs, ended.best) == ("finished", 3, None)
    (line,) = (line for line in said if "no AP can be measured" in line)
    assert "best.pt is the state of the last evaluation, and train.patience does not act" in line
    last, best = (load_checkpoint(run / "checkpoints" / f"{name}.pt") for name in ("last", "best"))
    assert best["progress"]["step"] == last["progress"]["step"] == ended.steps
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert -1 not in json.loads(line).values()
    with pytest.raises(DataError, match="val has no object to find"):
        run_tuning(config, tmp_path / "tune", say=print)


def test_images_with_more_objects_than_queries_are_told(config: Config, tmp_path: Path):
    said: list[str] = []
    start_run(update_config(config, {"model.num_queries": 1}), tmp_path / "run", said.append)
    counts = read_train_split(config).index.object_counts()
    (line,) = (line for line in said if "more objects than" in line)
    assert f"{(counts > 1).sum()} image" in line
    assert f"{counts.max()} of 1" in line


def test_what_is_counted_by_the_steps_of_a_training_is_said(config: Config, tmp_path: Path):
    said = list[str]()
    start_run(config, tmp_path / "run", said.append)
    assert any(line.startswith("2 steps of 2 images in 1 epochs") for line in said)
    published = preset_config("rtdetr-r18")
    (line,) = counted_lines(published, 3600)
    assert "warm-up: the first 180 instead of 2,000" in line
    assert "about the last 401" in line
    assert "zoom-out: in the first 69 epochs" in line
    (line,) = counted_lines(published, 10**6)
    assert "warm-up: the first 2,000; weights are averaged over about the last 10,000" in line
    _, warning = counted_lines(update_config(published, {"transforms.eval_size": 320}), 100)
    assert "sides of 480 to 800" in warning
    assert "evaluated at 320" in warning


@pytest.mark.parametrize("images", [50, 500, 5000])
@pytest.mark.parametrize(
    ("preset", "init"),
    [("rtdetr-r18", "published"), ("dfine-n", "published"), ("rtdetr-nano", "none"), ("dfine-n", "none")],
)
def test_counts_of_real_time_trainings_are_shares_of_their_own_steps(images: int, preset: str, init: str):
    """None may be counted for COCO's steps, of which 50 images give a thousandth."""
    config = resolve_config(preset, None, {"train.init": init})
    epoch_steps = math.ceil(images / config.train.batch_size)
    steps = epoch_steps * config.train.epochs
    (line,) = counted_lines(config, steps)
    said = [int(number.replace(",", "")) for number in re.findall(r"(?:first|last) ([\d,]+)", line)]
    warmup, averaged, *closed = said
    assert line.startswith(f"{steps:,} steps of {config.train.batch_size} images")
    assert 0 < warmup <= max(0.05 * steps + 1, 1)
    assert 1 < averaged <= 0.12 * steps
    assert averaged >= min(0.1 * steps, 500)  # so long that it smooths
    if config.transforms.zoom_out or config.transforms.mosaic:
        assert closed[0] / config.train.epochs == pytest.approx(config.transforms.close_after, abs=0.02)
    assert lr_factor(0, steps, config.train) <= 1 / warmup
    assert lr_factor(warmup, steps, config.train) == pytest.approx(1, abs=0.01)


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
