"""Prediction on Ray, killed at random and taken up again. DETRKIT_RAY_KILLS=10 kills ten times."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from detrkit.cli import app
from tests.support.bundles import bundle_files, noise, write_files

pytest.importorskip("ray")

KILLS = int(os.environ.get("DETRKIT_RAY_KILLS", "2"))
PICTURES = 120
EXPECTED = f"{PICTURES - 1} {2 * (PICTURES - 1)} 1"  # Ray's own words stand among what is printed
SCRIPT = """
import os
import sys
from pathlib import Path

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", RAY_worker_niceness="0")
import ray
from detrkit.detectors.load import load_detector
from detrkit.detectors.ray_predict import predict_on_ray

model, source, out = sys.argv[1:]
ray.init(
    address="local",
    num_cpus=2,
    include_dashboard=False,
    log_to_driver=False,
    object_store_memory=100 * 2**20,
    _node_ip_address="127.0.0.1",
    runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
)
found = predict_on_ray(
    load_detector(model), model, source, Path(out), threshold=0.1, batch_size=1, workers=2, part_pictures=4
)
print(found.pictures, found.objects, len(found.failures))
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ray")
    (place / "predict.py").write_text(SCRIPT)
    (place / "pictures").mkdir()
    for number in range(PICTURES):
        Image.fromarray(noise((900 + number % 50, 1200), number % 7)).save(
            place / "pictures" / f"{number:03d}.jpg", quality=90
        )
    (place / "pictures" / "100.jpg").write_bytes(b"no picture")
    write_files(place / "mean", bundle_files())
    return place


def start(desk: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "predict.py", "mean", "pictures", str(out)]
    with (desk / f"{out.name}.log").open("a") as log:
        return subprocess.Popen(command, cwd=desk, text=True, stdout=subprocess.PIPE, stderr=log)


def parts_of(out: Path) -> int:
    return len(list((out / "parts").glob("part-*.jsonl")))


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill a driver, and with it its Ray session."""
    session = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    for child in session:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(session, timeout=30)


def kill_one_worker(process: subprocess.Popen[str]) -> bool:
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "_Worker" in " ".join(child.cmdline()) or "MapWorker" in " ".join(child.cmdline()):
                child.kill()
                return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(900 + 300 * KILLS)
def test_killed_at_random_each_picture_is_there_once_as_in_an_undisturbed_run(desk: Path):
    whole, killed = desk / "whole", desk / "killed"
    out, _ = start(desk, whole).communicate(timeout=500)
    assert EXPECTED in out.splitlines(), (desk / "whole.log").read_text()[-2000:]
    chance, done, workers = random.Random(os.urandom(8)), 0, 0
    for left in range(KILLS, 0, -1):
        process = start(desk, killed)
        target = done + max(1, round((PICTURES // 4 - 2 - done) / left * chance.uniform(0.3, 1.0)))
        while parts_of(killed) < target and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        assert process.poll() is None, (desk / "killed.log").read_text()[-2000:]
        workers += kill_one_worker(process) if chance.random() < 0.5 else 0
        kill_all(process)
        done = parts_of(killed)
    out, _ = start(desk, killed).communicate(timeout=500)
    assert f"{done} are there already" in out
    assert 0 < done < PICTURES // 4
    print(f"{KILLS} kills, {done} of {PICTURES // 4} parts before the last run")
    lines = [line for path in sorted((killed / "parts").glob("*.jsonl")) for line in path.read_text().splitlines()]
    names = [json.loads(line)["source"] for line in lines]
    assert names == [f"pictures/{number:03d}.jpg" for number in range(PICTURES)]
    assert (killed / "predictions.json").read_bytes() == (whole / "predictions.json").read_bytes()
    with contextlib.chdir(desk):
        words = ["predict", "mean", "pictures", "--out", "plain", "--threshold", "0.1", "--batch-size", "1"]
        plain = CliRunner().invoke(app, words)
    assert "100.jpg" in plain.output, (plain.output, plain.exception)  # the broken picture
    assert (desk / "plain" / "predictions.json").read_bytes() == (whole / "predictions.json").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_that_is_killed_is_replaced_and_no_picture_lost(desk: Path):
    out = desk / "worker"
    process = start(desk, out)
    while parts_of(out) < 5 and process.poll() is None:
        time.sleep(0.01)
    assert kill_one_worker(process)
    said, _ = process.communicate(timeout=500)
    assert EXPECTED in said.splitlines(), (desk / "worker.log").read_text()[-2000:]
