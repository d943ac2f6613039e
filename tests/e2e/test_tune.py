"""``detrkit tune`` by its real command: killed, gone on with, and in two processes."""

from __future__ import annotations

import csv
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from detrkit.curation.synthetic import write_synthetic
from tests.e2e.conftest import BATCH, SETTINGS, finish, records, run_here, run_well, start

EPOCHS = 2


def tune_arguments(data: Path, out: Path, *options: str) -> list[str]:
    settings = {**SETTINGS, "train.log_images": 0, "train.save_every_steps": 2, "train.batch_size": BATCH}
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    head = ["tune", "--model", "detr-tiny", "--data", str(data), "--out", str(out), "--epochs", str(EPOCHS)]
    return [*head, "--no-prune", *options, *(pair.replace('"', "") for pair in pairs)]


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "trials.csv").read_text(encoding="utf-8").splitlines()))


def trials_in(out: Path) -> list[tuple[object, ...]]:
    """Number, state, value and both times of each trial, as the database has them."""
    with sqlite3.connect(out / "study.db") as database:
        query = (
            "select number, state, value, datetime_start, datetime_complete from trials "
            "left join trial_values using (trial_id) order by number"
        )
        found = database.execute(query).fetchall()
    database.close()
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 300
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_search_finishes_its_remaining_trials_only(tiny_data: Path, tmp_path: Path):
    out = tmp_path / "study"
    interrupted = out / "trials" / "0001"
    process = start(tune_arguments(tiny_data, out, "--trials", "2"))
    wait_for(lambda: (interrupted / "checkpoints" / "last.pt").exists())
    process.kill()
    process.communicate()
    assert [(number, state) for number, state, *_ in trials_in(out)] == [(0, "COMPLETE"), (1, "RUNNING")]
    before, config = trials_in(out), (interrupted / "config.yaml").read_bytes()
    first = (out / "trials" / "0000" / "metrics.jsonl").read_bytes()

    said = run_well("tune", "--out", out)

    after = trials_in(out)
    assert [state for _, state, *_ in after] == ["COMPLETE", "FAIL", "COMPLETE"]  # the second was retried
    assert after[0] == before[0]
    assert (out / "trials" / "0000" / "metrics.jsonl").read_bytes() == first
    assert (interrupted / "config.yaml").read_bytes() == config
    assert "trial 1 goes on" in said
    assert any("resumed at step" in event["message"] for event in records(interrupted, "event"))
    steps = [record["step"] for record in records(interrupted, "step")]
    assert steps == list(range(1, len(steps) + 1))  # no step twice, none left out
    assert [record["epoch"] for record in records(interrupted, "eval")] == [1, 2]
    assert sorted(path.name for path in (out / "trials").iterdir()) == ["0000", "0001"]
    assert [row["state"] for row in rows_of(out)] == ["complete"] * 2
    assert "detrkit train --config" in said
    for name in ("best.yaml", "tune.html", "tune.png"):
        assert (out / name).stat().st_size > 1000

    assert "2 are finished" in run_well("tune", "--out", out)
    assert trials_in(out) == after


@pytest.mark.slow
def test_two_processes_share_a_study(tiny_data: Path, tmp_path: Path):
    out = tmp_path / "study"
    arguments = tune_arguments(tiny_data, out, "--trials", "4")
    processes = [start(arguments), start(arguments)]
    said = [finish(process)[0] for process in processes]
    assert [(number, state) for number, state, *_ in trials_in(out)] == [(n, "COMPLETE") for n in range(4)]
    assert all(sum(text.count(f"trial {number} done") for text in said) == 1 for number in range(4))
    assert all("trial " in text for text in said)
    assert len({tuple(row.items())[5:9] for row in rows_of(out)}) == 4  # no two with the same parameters


@pytest.mark.slow
def test_best_config_trains(tiny_data: Path, tmp_path: Path):
    out = tmp_path / "study"
    result = json.loads(run_well(*tune_arguments(tiny_data, out, "--trials", "1", "--json")))
    assert result["best"] == 0
    assert result["trials"][0]["state"] == "complete"
    run_well("train", "--config", result["best_config"], "--run", tmp_path / "run", "--epochs", "1")
    assert records(tmp_path / "run", "eval")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--space", "space.yaml"], "unknown config key train.lrr; did you mean train.lr"),
        (["--pruner", "best"], "--pruner is 'best', expected median, hyperband or none"),
        (["--lr-range", "--trials", "3"], "--trials belong to the search"),
        (["--set", "train.devices=2"], "start the same command several times"),
        (["--workers", "2"], "start the same command 2 times"),
    ],
)
def test_what_is_asked_wrongly_ends_with_2(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text("train.lrr: {low: 1e-5, high: 1e-3}", encoding="utf-8")
    result = run_here(*tune_arguments(tiny_data, Path("study"), *options))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("study", "trials").exists()


@pytest.mark.slow
def test_the_range_test_suggests_a_rate_that_learns(tmp_path: Path):
    data = write_synthetic(tmp_path / "shapes", train_images=200, val_images=8, size=64, seed=1)
    settings = [
        part
        for key, value in {**SETTINGS, "train.batch_size": 8}.items()
        for part in ("--set", f"{key}={json.dumps(value)}")
    ]
    arguments = ["--model", "detr-tiny", "--data", data, *settings]
    out = tmp_path / "lr"
    found = json.loads(run_well("tune", "--lr-range", *arguments, "--out", out, "--steps", "100", "--json"))
    assert 1e-4 <= found["suggested"] <= 1e-2  # the preset's own is 1e-3
    assert (out / "lr_range.png").stat().st_size > 1000
    rate = ["--set", f"train.lr={found['suggested']}", "--set", f"train.backbone_lr={found['suggested']}"]
    run_well("train", *arguments, *rate, "--run", tmp_path / "run", "--epochs", "2")
    losses = [record["loss"] for record in records(tmp_path / "run", "step")]
    assert sum(losses[-4:]) < 0.97 * sum(losses[:4])
