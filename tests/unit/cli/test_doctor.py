"""What ``detrkit doctor`` says of extras and of the limits of containers."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import pytest
import torch

doctor: Any = importlib.import_module("detrkit.cli.doctor")  # the package holds the function under this name


@pytest.mark.parametrize(
    ("usable", "threads", "memory", "status"),
    [(64, 2, None, "ok"), (1, 64, None, "warning"), (1, 1, 1 << 30, "warning"), (1, 1, 64 << 30, "ok")],
)
def test_limits_of_a_container_are_compared_with_what_is_taken(
    usable: int, threads: int, memory: int | None, status: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(doctor, "usable_cpus", lambda: usable)
    monkeypatch.setattr(doctor, "memory_limit", lambda: memory)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    findings = {finding.name: finding for finding in doctor._limits()}
    assert findings["usable cores"].found.startswith(f"{usable} of ")
    assert ("threads" in findings) == (threads > usable)
    assert ("memory limit" in findings) == (memory is not None)
    worst = max((finding.status for finding in findings.values()), key=("ok", "warning").index)
    assert worst == status
    if threads > usable:
        assert f"OMP_NUM_THREADS={usable}" in findings["threads"].advice


def test_each_extra_is_said_to_be_there_or_what_it_lacks(monkeypatch: pytest.MonkeyPatch):
    needs = [
        "numpy>=2.0",
        "torch-of-the-future>=9 ; extra == 'serve'",
        "numpy>=1.0 ; python_version >= '3' and extra == 'video'",
        "detrkit[serve] ; extra == 'dev'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    found = {finding.name: finding for finding in doctor._extras()}
    assert set(found) == {"extra serve", "extra video"}
    assert "torch-of-the-future" in found["extra serve"].found
    assert "detrkit[serve]" in found["extra serve"].advice
    assert (found["extra video"].found, found["extra video"].advice) == ("installed", "")


def test_a_folder_that_was_not_installed_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_version", lambda _: None)
    assert [(finding.status, finding.found) for finding in doctor.examine()[1:]] == [("error", "not installed")]
