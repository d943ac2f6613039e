from __future__ import annotations

import errno
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from detrkit.config import Config, update_config
from detrkit.data.loader import LoadingFacts
from detrkit.errors import CheckpointError
from detrkit.training.telemetry.log import RunLog, StepRecord
from tests.support.killing import read_tensorboard
from tests.unit.training.disk import FullDisk


def record(step: int, loss: float = 2.0, wait: float = 0.25) -> StepRecord:
    return StepRecord(step, 1, loss, {"class": 1.0, "l1": 0.5}, {"model": 1e-4}, math.inf, 8.0, wait, 1.5)


def lines(run_dir) -> list[dict]:
    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_records_are_one_json_object_a_line(tmp_path):
    with RunLog(tmp_path, 10) as log:
        log.step(record(1))
        first = lines(tmp_path)[0]
        assert 0 <= first.pop("elapsed_s") < 60
        assert first == {
            "kind": "step",
            "step": 1,
            "epoch": 1,
            "loss": 2.0,
            "loss_class": 1.0,
            "loss_l1": 0.5,
            "lr": 1e-4,
            "grad_norm": None,
            "images_per_s": 8.0,
            "data_wait": 0.25,
            "memory_gib": 1.5,
        }  # already on the disk, and infinity is not JSON
        log.evaluation(2, 1, {"AP": 0.4}, best=True)
        log.epoch(2, 1, 3.5)
        log.event(2, 1, "something")
        assert log.records == 4
    assert [line["kind"] for line in lines(tmp_path)] == ["step", "eval", "epoch", "event"]


def test_resume_cuts_records_after_the_checkpoint(tmp_path):
    with RunLog(tmp_path, 10) as log:
        for step in range(1, 6):
            log.step(record(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')  # the process died as it wrote
    with RunLog(tmp_path, 10, start_step=3, resume_at={"records": 3}) as log:
        assert log.records == 3
        log.step(record(4, loss=9.0))
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 9.0)]
    with RunLog(tmp_path, 10, resume_at={"records": 100}) as log:
        assert log.records == 4


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown(tmp_path, terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200)
    with RunLog(tmp_path, 10, console=console) as log:
        log.step(record(5))
        log.advance(5, 1)
        log.evaluation(5, 1, {"AP": 0.4321, "AP50": 0.6}, best=True)
    shown = out.getvalue()
    assert "AP 0.432  AP50 0.600  (best so far)" in shown
    assert "loss 2.0000" in shown
    assert "8.0 img/s, waits 25% for data, 1.5 GiB" in shown
    assert ("━" in shown) == terminal
    assert ("step 5/10" in shown) == (not terminal)


def advices(run_dir, waits: list[float], facts: LoadingFacts | None) -> list[tuple[int, str]]:
    out = io.StringIO()
    with RunLog(run_dir, 100, loading=facts, console=Console(file=out, width=300)) as log:
        for step, wait in enumerate(waits, start=1):
            log.step(record(step, wait=wait))
    found = [(line["step"], line["message"]) for line in lines(run_dir) if line["kind"] == "event"]
    assert all(message in out.getvalue() for _, message in found)
    return found


def test_waiting_for_data_is_explained_once(tmp_path):
    facts = LoadingFacts(1, 1, 8, 480, 800, False, "DATA")
    found = advices(tmp_path, [0.9, 0.5, 0.43, 0.6, 0.7, 0.1, 0.8, 0.8], facts)
    assert found == [(3, "waiting for data 43 % of the time: raise data.workers (now 1, for 8 CPUs)")]


FULL = {
    "layers": {"class": (3.0, 2.0), "l1": (0.5, math.nan)},
    "clipped": 0.5,
    "loss_scale": 1024.0,
    "host_gib": 2.5,
    "micro_batch": 2,
}


def full_record(step: int) -> StepRecord:
    rates = {"model": 1e-4, "backbone": 1e-5}
    return StepRecord(step, 1, 1.0 / step, {"class": 1.0}, rates, 0.5, 8.0, 0.25, 1.5, **FULL)


def quiet(run_dir: Path, **options: Any) -> RunLog:
    return RunLog(run_dir, 100, console=Console(file=io.StringIO()), **options)


def test_tensorboard_has_everything_in_groups(tmp_path):
    config = update_config(Config(), {"train.lr": 0.5, "model.dropout": 0.25})
    with quiet(tmp_path, config=config) as log:
        log.step(full_record(1))
        log.step(full_record(2))
        log.evaluation(2, 1, {"AP": 0.5, "AP50": 0.75, "APl": math.nan}, best=True)
        log.images(2, [("one.jpg", np.zeros((40, 2000, 3), np.uint8))])
    board = read_tensorboard(tmp_path)
    steps = {tag for tag, points in board.items() if 1 in dict(points)}
    assert steps == {
        *("loss/total", "loss/class", "lr/model", "lr/backbone", "layers/class/1", "layers/class/2"),
        *("layers/l1/1", "layers/l1/2", "gradient/norm", "gradient/clipped", "gradient/loss_scale"),
        *("speed/images_per_s", "speed/data_wait", "speed/micro_batch", "memory/gib", "memory/host_gib"),
    }
    assert {tag for tag, points in board.items() if 2 in dict(points)} - steps == {
        *("eval/AP", "eval/AP50", "samples/one.jpg")
    }
    assert board["loss/total"] == [(1, 1.0), (2, 0.5)]
    with Image.open(io.BytesIO(board["samples/one.jpg"][0][1])) as picture:
        assert (picture.size, picture.format) == ((960, 19), "JPEG")
    assert b"dropout: 0.25" in board["config/text_summary"][0][1]
    assert [tag for _, tag in board["hparams"]] == ["_hparams_/experiment", "_hparams_/session_start_info"]


def train_from(run_dir: Path, first: int, last: int, **options: Any) -> dict[str, Any]:
    """Log steps and evaluations; the position after each is returned by step."""
    positions = {}
    with quiet(run_dir, start_step=first - 1, config=Config(), **options) as log:
        for step in range(first, last + 1):
            log.step(full_record(step))
            if step % 5 == 0:
                log.evaluation(step, 1, {"AP": 0.01 * step}, best=True)
                log.images(step, [("one", np.zeros((8, 8, 3), np.uint8))])
            positions[step] = log.position()
    return positions


@pytest.mark.parametrize("saved", [pytest.param(1, marks=pytest.mark.slow), 12])
def test_resumed_log_has_no_gap_and_no_double(tmp_path, saved):
    train_from(tmp_path / "whole", 1, 20)
    positions = train_from(tmp_path / "run", 1, 14)
    json.dumps(positions)  # primitives only
    train_from(tmp_path / "run", saved + 1, 17, resume_at=positions[saved])
    again = train_from(tmp_path / "run", saved + 1, 16, resume_at=positions[saved])
    train_from(tmp_path / "run", 17, 20, resume_at=again[16])
    boards = [read_tensorboard(tmp_path / name) for name in ("run", "whole")]
    assert str(boards[0]) == str(boards[1])  # NaN is no equal of NaN
    assert [step for step, _ in boards[0]["loss/total"]] == list(range(1, 21))
    assert [step for step, _ in boards[0]["samples/one"]] == [5, 10, 15, 20]
    assert len(boards[0]["config/text_summary"]) == 1
    times = [line.pop("elapsed_s") for line in lines(tmp_path / "run") if line["kind"] == "step"]
    assert times == sorted(times)
    without = [[{**line, "elapsed_s": 0} for line in lines(tmp_path / name)] for name in ("run", "whole")]
    assert without[0] == without[1]


@pytest.mark.parametrize("every", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["its line", "without"])
def test_an_evaluation_is_shown_once_although_its_step_was_saved_before_it(tmp_path, every):
    """Killed while the checkpoint behind an evaluation is written, twice: the one before it is gone on from."""

    def evaluate(**options: Any) -> None:
        with quiet(tmp_path, config=Config(), **options) as log:
            log.evaluation(3, 1, {"AP": 0.5}, best=True)
            log.images(3, [("one", np.zeros((8, 8, 3), np.uint8))])

    with quiet(tmp_path, config=Config()) as log:
        for step in (1, 2, 3):
            log.advance(step, 1)
            if step % every == 0:
                log.step(full_record(step))
        saved = log.position()
    evaluate(start_step=3, resume_at=saved)
    evaluate(start_step=3, resume_at=saved)
    with quiet(tmp_path, config=Config(), start_step=3, resume_at=saved) as log:
        again = log.position()
    evaluate(start_step=3, resume_at=again)
    board = read_tensorboard(tmp_path)
    assert board["eval/AP"] == [(3, 0.5)]
    assert [step for step, _ in board["samples/one"]] == [3]
    assert [step for step, _ in board["loss/total"]] == [step for step in (1, 2, 3) if step % every == 0]


def test_a_log_that_holds_less_than_the_checkpoint_knew_is_said_and_gone_on_from(tmp_path):
    positions = train_from(tmp_path, 1, 6)
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)[:4]
    (tmp_path / "metrics.jsonl").write_text("".join(kept))
    out = io.StringIO()
    with RunLog(tmp_path, 9, start_step=6, resume_at=positions[6], console=Console(file=out, width=999)) as log:
        log.step(full_record(7))
    assert "metrics.jsonl has 4 lines, the checkpoint knew 7: its curves have a gap" in out.getvalue()
    assert [line["step"] for line in lines(tmp_path) if line["kind"] == "step"] == [1, 2, 3, 4, 7]


@pytest.mark.parametrize("fails", ["write", "flush"])
def test_events_that_cannot_be_written_are_said_once_and_end_at_the_checkpoint(
    tmp_path, monkeypatch, fails, capsys
):
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard import SummaryWriter

    out = io.StringIO()
    config = update_config(Config(), {"train.trackers": ["tensorboard"]})
    with RunLog(tmp_path, 10, config=config, console=Console(file=out, width=999)) as log:
        log.step(full_record(1))
        log.position()

        def full(*_args: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(RecordWriter if fails == "write" else SummaryWriter, fails, full)
        for step in range(2, 6):
            log.step(full_record(step))
        with pytest.raises(CheckpointError, match=r"no space left for .*events.*go on with: detrkit resume"):
            log.position()
        monkeypatch.undo()
        log.step(full_record(6))
        with pytest.raises(CheckpointError):  # what was lost does not come back
            log.position()
    assert out.getvalue().count("no space left") == 1
    assert "Traceback" not in capsys.readouterr().err
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_full_disk_is_said_once_and_ends_at_the_checkpoint(tmp_path, monkeypatch):
    out = io.StringIO()
    disk = FullDisk(monkeypatch, room=10_000)
    config = update_config(Config(), {"train.trackers": []})
    with RunLog(tmp_path, 10, config=config, console=Console(file=out, width=999)) as log:
        log.step(full_record(1))
        log.position()
        disk.room = 300  # half a line
        for step in range(2, 6):
            log.step(full_record(step))
        assert out.getvalue().count("no space left") == 1
        with pytest.raises(CheckpointError, match=r"no space left for .*go on with: detrkit resume"):
            log.position()
        assert len(lines(tmp_path)) < 5  # only whole ones
        disk.room = 100_000
        log.position()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
