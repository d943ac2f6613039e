"""Training from the command line: the run folder, repetition, interruption, full disks, broken images."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from detrkit.checkpoint import load_checkpoint, read_model
from tests.e2e.conftest import (
    EPOCHS,
    STEPS,
    VAL_IMAGES,
    Trained,
    assert_equal,
    finish,
    records,
    run_here,
    run_well,
    start,
    train_arguments,
    trained,
)


def test_run_folder_holds_everything(tiny_run: Trained):
    run = tiny_run.run
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    checkpoints = {f"checkpoints/{name}.pt" for name in ("last", "previous", "best")}
    assert files - events == checkpoints | {
        ".detrkit-written",
        "config.yaml",
        "classes.json",
        "metrics.jsonl",
        "curves.png",
        "weights.txt",
    }
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "weights.txt").read_text() == "detr-tiny starts from random weights, as it is meant to\n"
    assert [record["step"] for record in records(run, "step")] == list(range(1, STEPS + 1))
    assert [record["epoch"] for record in records(run, "eval")] == list(range(1, EPOCHS + 1))
    assert read_model(run).class_map.names == ("disc", "square", "triangle", "star", "ring", "cross")


@pytest.mark.slow
def test_config_of_the_run_repeats_it_whatever_the_number_of_workers(tiny_run: Trained, tmp_path: Path):
    run = tmp_path / "again"
    config = tiny_run.run / "config.yaml"
    arguments = ["train", "--config", str(config), "--run", str(run), "--set", "data.workers=1"]
    finish(start(arguments, cwd=tmp_path))
    assert_equal(trained(run), trained(tiny_run.run))
    assert records(run, "eval") == records(tiny_run.run, "eval")
    resolved = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in (tiny_run.run, run)]
    assert [config["data"].pop("workers") for config in resolved] == [0, 1]
    assert resolved[0] == resolved[1]


def wait_for_step(run: Path, step: int) -> None:
    """Until the log of a run shows a step."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and f'"step": {step},' in (run / "metrics.jsonl").read_text():
            return
        time.sleep(0.002)
    raise AssertionError(f"{run} never came to step {step}")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [
        pytest.param(signal.SIGINT, 130, 1, id="SIGINT"),
        pytest.param(signal.SIGTERM, 143, 0, id="SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_interrupted_run_is_saved_and_resumed_to_the_same_weights(
    number: int, code: int, workers: int, tiny_run: Trained, tiny_data: Path, tmp_path: Path
):
    run = tmp_path / "run"
    process = start(train_arguments(tiny_data, run, data__workers=workers))
    wait_for_step(run, 8)
    process.send_signal(number)
    _, err = finish(process, code)
    assert f"go on with: detrkit resume {run}" in err
    stopped_at = load_checkpoint(run / "checkpoints" / "last.pt")["progress"]["step"]
    assert 8 <= stopped_at < STEPS
    run_well("resume", run)
    assert_equal(trained(run), trained(tiny_run.run))
    assert records(run, "eval") == records(tiny_run.run, "eval")
    assert [record["step"] for record in records(run, "step")] == list(range(1, STEPS + 1))


def test_finished_run_is_resumed_only_for_more_epochs(tiny_run: Trained, copy_of: Callable[[Path], Path]):
    run = copy_of(tiny_run.run)
    before = (run / "metrics.jsonl").read_bytes()
    assert f"{EPOCHS} epochs are done" in run_well("resume", run)
    assert (run / "metrics.jsonl").read_bytes() == before
    run_well("resume", run, "--epochs", str(EPOCHS + 1))
    assert len(records(run, "eval")) == EPOCHS + 1
    assert f"{EPOCHS + 1} epochs are done" in run_well("resume", run)  # the new total was kept


@pytest.mark.slow
def test_full_disk_ends_training_with_a_message_and_keeps_the_checkpoints(
    tiny_run: Trained, copy_of: Callable[[Path], Path]
):
    run = copy_of(tiny_run.run)
    checkpoints = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    half = len(checkpoints[run / "checkpoints" / "best.pt"]) // 2

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))

    _, err = finish(start(["resume", str(run), "--epochs", str(EPOCHS + 1)], preexec_fn=limit), 1)
    assert "error: cannot write checkpoint" in err
    assert "earlier checkpoints are untouched" in err
    assert {path: path.read_bytes() for path in (run / "checkpoints").iterdir()} == checkpoints
    run_well("resume", run, "--epochs", EPOCHS + 1)  # what could not be saved is asked for again
    assert len(records(run, "eval")) == EPOCHS + 1


def test_truncated_training_image_is_left_out_and_named(
    tiny_data: Path, copy_of: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    data = copy_of(tiny_data)
    broken = data / "train2017" / "000003.jpg"
    broken.write_bytes(broken.read_bytes()[:600])
    out = run_well(*train_arguments(data, tmp_path / "run", epochs=1))
    assert "1 epoch, 6 steps" in out
    warnings = [record.message for record in caplog.records if "left out of training" in record.message]
    assert len(warnings) == 1
    assert str(broken) in warnings[0]


def test_missing_validation_image_stops_training_before_it_begins(
    tiny_data: Path, copy_of: Callable[[Path], Path], tmp_path: Path
):
    data = copy_of(tiny_data)
    (data / "val2017" / "000002.jpg").unlink()  # train2017 has a file of that name
    result = run_here(*train_arguments(data, tmp_path / "run"))
    assert result.exit_code == 1
    assert f"1 of {VAL_IMAGES} image files do not exist in {data / 'val2017'}" in result.stderr
    assert "for instance 000002.jpg" in result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_validation_image_is_named_and_the_epoch_is_kept(
    workers: int, tiny_data: Path, copy_of: Callable[[Path], Path], tmp_path: Path
):
    data = copy_of(tiny_data)
    whole = data / "val2017" / "000005.jpg"
    content = whole.read_bytes()
    whole.write_bytes(content[:600])
    run = tmp_path / "run"
    result = run_here(*train_arguments(data, run, epochs=1, data__workers=workers))
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {whole}: cannot be decoded")
    whole.write_bytes(content)
    assert "1 epoch, 6 steps" in run_well("resume", run)
