from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from detrkit.data.loader import LoadingFacts
from detrkit.training.log import RunLog, StepRecord, memory_gib


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
        assert lines(tmp_path)[0] == {
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
    with RunLog(tmp_path, 10, start_step=3, keep_records=3) as log:
        assert log.records == 3
        log.step(record(4, loss=9.0))
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 9.0)]
    with RunLog(tmp_path, 10, keep_records=100) as log:
        assert log.records == 4


def test_disabled_log_writes_nothing(tmp_path):
    with RunLog(tmp_path / "run", 10, enabled=False) as log:
        log.step(record(1))
        log.advance(1, 1)
        log.evaluation(1, 1, {"AP": 0.1}, best=True)
        log.epoch(1, 1, 0.1)
        log.event(1, 1, "x")
        log.images(1, [("a", np.zeros((4, 4, 3), np.uint8))])
        log.flush()
    assert not (tmp_path / "run").exists()


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


def test_memory_of_the_process_is_plausible():
    assert 0.01 < memory_gib(torch.device("cpu")) < 1000


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
    assert found == [(3, "waiting for data 43 % of the time: raise data.workers (now 1; there are 8 CPUs)")]


@pytest.mark.parametrize("waits", [[0.9, 0.1, 0.1], [0.9, 0.9], [0.1, 0.9, 0.1, 0.9, 0.1], [0.15] * 9])
def test_no_remedy_is_named_for_a_single_wait_or_the_start(tmp_path, waits):
    assert advices(tmp_path, waits, LoadingFacts(1, 1, 8, 480, 800, False, "DATA")) == []


def test_no_remedy_is_named_where_nothing_is_known_of_loading(tmp_path):
    assert advices(tmp_path, [0.9] * 5, None) == []
