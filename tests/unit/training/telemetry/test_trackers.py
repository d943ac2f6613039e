"""With the real packages: wandb without a network, MLflow with a database file."""

from __future__ import annotations

import io
import json
import math
import struct
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from detrkit.config import Config, update_config
from detrkit.errors import MissingExtraError, TrainingError
from detrkit.training.telemetry import trackers
from detrkit.training.telemetry.log import RunLog
from detrkit.training.telemetry.trackers import check_trackers
from tests.unit.training.telemetry.test_log import full_record


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database, which takes MLflow seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def client(database: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        return MlflowClient()


def run_of(client: Any, run_dir: Path) -> Any:
    return client.get_run(json.loads((run_dir / "trackers.json").read_text())["mlflow"])


def open_log(run_dir: Path, names: tuple[str, ...], out: io.StringIO | None = None, **options: Any) -> RunLog:
    config = update_config(Config(), {"train.trackers": list(names), "train.project": "shapes", "train.lr": 0.5})
    return RunLog(run_dir, 100, config=config, console=Console(file=out or io.StringIO(), width=999), **options)


def wandb_records(path: Path) -> Iterator[bytes]:
    """What a .wandb file holds: LevelDB's log format, blocks of 32 KiB, behind a header of 7 bytes."""
    content, place, piece = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        piece += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield piece
            piece = b""


def wandb_history(run_dir: Path) -> list[dict[int, dict[str, Any]]]:
    """Rows by step of each offline session, read back from wandb's own files."""
    return [_finished_rows(path) for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))]


def _finished_rows(path: Path) -> dict[int, dict[str, Any]]:
    """Rows of a session; wandb's process may still be writing the last of them when the session has ended."""
    from wandb.proto import wandb_internal_pb2

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        records = [wandb_internal_pb2.Record.FromString(raw) for raw in wandb_records(path)]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            break
        time.sleep(0.05)
    rows: dict[int, dict[str, Any]] = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            values = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
            rows.setdefault(record.history.step.num, {}).update(values)
    return rows


@pytest.mark.slow
def test_wandb_gets_steps_evaluations_pictures_and_the_config(tmp_path, offline):
    out = io.StringIO()
    with open_log(tmp_path / "run", ("wandb",), out) as log:
        log.step(full_record(1))
        log.step(full_record(2))
        log.evaluation(2, 1, {"AP": 0.5, "APl": math.nan}, best=True)
        log.images(2, [("one.jpg", np.zeros((8, 8, 3), np.uint8))])
    (session,) = wandb_history(tmp_path / "run")
    assert sorted(session) == [1, 2]
    assert [session[step]["loss/total"] for step in (1, 2)] == [1.0, 0.5]
    assert session[2]["eval/AP"] == 0.5
    assert "layers/l1/2" not in session[1]  # NaN
    assert "eval/APl" not in session[2]
    assert session[2]["samples/one.jpg._type"] == "image-file"
    assert "wandb: " in out.getvalue()
    assert not list((tmp_path / "run").glob("events.*"))
    ids = json.loads((tmp_path / "run" / "trackers.json").read_text())
    assert next((tmp_path / "run" / "wandb").glob("offline-run-*")).name.endswith(ids["wandb"])


def test_resumed_wandb_run_keeps_its_id(tmp_path, offline):
    for first in (1, 3):
        with open_log(tmp_path / "run", ("wandb",), start_step=first - 1) as log:
            for step in range(first, first + 2):
                log.step(full_record(step))
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    assert [sorted(session) for session in wandb_history(tmp_path / "run")] == [[1, 2], [3, 4]]


def steps_and_values(client: Any, run_id: str, tag: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, tag))


@pytest.mark.slow
def test_mlflow_goes_on_in_the_same_run_without_doubles(tmp_path, client):
    run_dir = tmp_path / "run"
    with open_log(run_dir, ("mlflow", "tensorboard")) as log:
        for step in (1, 2, 3):
            log.step(full_record(step))
            if step == 2:
                position = log.position()
        log.evaluation(3, 1, {"AP": 0.25}, best=True)
    with open_log(run_dir, ("mlflow", "tensorboard"), start_step=2, resume_at=position) as log:
        for step in (3, 4):
            log.step(full_record(step))
        log.evaluation(3, 1, {"AP": 0.25}, best=True)
        log.evaluation(4, 1, {"AP": 0.5}, best=True)
    run = run_of(client, run_dir)
    assert client.get_experiment(run.info.experiment_id).name == "shapes"
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["train.lr"] == "0.5"
    assert run.data.params["model.preset"] == "detr-r50"
    assert steps_and_values(client, run.info.run_id, "loss/total") == [(n, 1.0 / n) for n in (1, 2, 3, 4)]
    assert steps_and_values(client, run.info.run_id, "eval/AP") == [(3, 0.25), (4, 0.5)]


class Broken:
    """A service whose network is gone."""

    id = "7"
    place = "nowhere"

    def __init__(self, _run_dir: Path, _project: str, run_id: str | None, _params: Any):
        self.tries = 0

    def fail(self, *_args: Any) -> None:
        self.tries += 1
        raise ConnectionError("no route\nto host")

    log_values = log_images = close = fail


def test_a_service_that_fails_later_is_said_once_and_left_alone_for_longer_and_longer(tmp_path, monkeypatch):
    now, broken = 0.0, Broken(tmp_path, "", None, {})
    monkeypatch.setitem(trackers._TRACKERS, "wandb", lambda *_args: broken)
    out = io.StringIO()
    with open_log(tmp_path, ("wandb",), out) as log:
        monkeypatch.setattr(trackers.time, "monotonic", lambda: now)
        for step in range(1, 301):
            now += 1.0
            log.step(full_record(step))
        assert broken.tries == 3  # after 1, 61 and 181 seconds
        log.position()
    assert broken.tries == 4  # the end is tried in any case
    assert out.getvalue().count("WARNING: wandb fails: no route to host; training goes on") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 300


def test_a_service_that_refuses_ends_a_new_run_before_training_but_not_a_resumed_one(tmp_path, monkeypatch):
    def refuse(*_args: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setitem(trackers._TRACKERS, "mlflow", refuse)
    with pytest.raises(TrainingError, match=r"mlflow cannot begin a run: no route; check .* MLFLOW_TRACKING_URI"):
        open_log(tmp_path, ("mlflow",))
    (tmp_path / "trackers.json").write_text('{"mlflow": "7"}')
    out = io.StringIO()
    with open_log(tmp_path, ("mlflow",), out) as log:
        log.step(full_record(1))
    assert "WARNING: mlflow fails: no route" in out.getvalue()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf'{name} is not installed; run: pip install "detrkit\[track\]"'):
        check_trackers(("tensorboard", name))
    with pytest.raises(MissingExtraError):
        open_log(tmp_path / "run", (name,))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
