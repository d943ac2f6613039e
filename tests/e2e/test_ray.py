"""Training on Ray, here one machine with two workers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import records
from tests.e2e.processes import arguments, assert_same_training, ended, popen, torchrun, wait_for_step

pytest.importorskip("ray")

# A Ray session of its own, without network or dashboard, that ends with the process.
SCRIPT = """
import os
import sys
os.environ.update(
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="300", RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled"
)
import ray
from detrkit.cli import main

ray.init(
    address="local",
    num_cpus=2,
    include_dashboard=False,
    object_store_memory=100 * 2**20,
    _node_ip_address="127.0.0.1",
    runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
)
main()
"""


def on_ray(tmp_path: Path, command: list[str], workers: int = 2) -> Any:
    script = tmp_path / "on_ray.py"
    script.write_text(SCRIPT)
    return popen([sys.executable, str(script), *command, "--ray", str(workers)])


def training_workers(pid: int) -> list[psutil.Process]:
    """Ray's workers that train: those that have started workers of their loaders."""
    ray = {
        child.pid for child in psutil.Process(pid).children(recursive=True) if _title(child).startswith("ray::")
    }
    return [psutil.Process(parent) for parent in sorted({psutil.Process(child).ppid() for child in ray} & ray)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def by_torchrun(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("processes") / "torchrun"
    code, _, err = ended(torchrun(arguments(tiny_data, run)))
    assert code == 0, err
    return run


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_ray_workers_train_bit_for_bit_as_two_processes_do(by_torchrun: Path, tiny_data: Path, tmp_path: Path):
    run = tmp_path / "run"
    code, out, err = ended(on_ray(tmp_path, arguments(tiny_data, run)), timeout=1500)
    assert code == 0, out + err
    assert f"Run folder: {run}" in out
    assert_same_training(run, by_torchrun)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ray_restarts_after_a_killed_worker_and_the_run_ends_as_if_nothing_had_been(
    by_torchrun: Path, tiny_data: Path, tmp_path: Path
):
    run = tmp_path / "killed"
    process = on_ray(tmp_path, arguments(tiny_data, run))
    try:
        wait_for_step(process, run, 4)
        workers = training_workers(process.pid)
        assert len(workers) == 2
        workers[1].kill()
    finally:
        code, out, err = ended(process, timeout=1500)
    assert code == 0, out + err
    assert any("resumed at step" in event["message"] for event in records(run, "event"))
    assert_same_training(run, by_torchrun)
