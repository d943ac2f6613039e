from __future__ import annotations

import warnings

import pytest
import torch

from benchmarks import detr_speed
from benchmarks.detr_speed import RECOMPUTE, THEIRS, Job
from benchmarks.timing import table

SMALL = Job(torch.device("cpu"), batch=1, size_hw=(64, 96))


@pytest.mark.slow
def test_training_steps_are_timed_in_turn_and_memory_is_taken_from_processes_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
):
    asked = []

    def memory(name: str, job: Job) -> int:
        asked.append(name)
        return measured if name == THEIRS else 2**29

    measured = detr_speed.memory_of_its_own(RECOMPUTE, SMALL)  # one stands for all: each takes its imports again
    assert 0.4 * 2**30 < measured < 2**30  # gradients and the optimiser's state at least
    monkeypatch.setattr(detr_speed, "memory_of_its_own", memory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        ours, theirs = detr_speed.make_pair()
        rows = detr_speed.training_step(ours, theirs, SMALL, 1)
    assert [row.name for row in rows] == asked == [THEIRS, "detrkit float32", "detrkit bf16", RECOMPUTE]
    assert f"0.50 GiB ({2**29 / measured:.2f})" in table("steps", rows)
