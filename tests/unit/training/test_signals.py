from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detrkit.training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_second_aborts(number):
    former = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal_number == number
        assert not stop.insisted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert stop.insisted
    assert signal.getsignal(number) is former


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_group_with_workers_saves_and_ends(tmp_path, number):
    """A terminal's Ctrl-C and a scheduler's SIGTERM reach the loader's workers as well."""
    script = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import Toy, toy_config, toy_loader
result = Toy(Path(sys.argv[1])).fit(toy_config(epochs=100000, log_every=1), loader=toy_loader(workers=2))
print(result.stopped, result.signal_number, result.steps, flush=True)
"""
    run_dir = tmp_path / "run"
    command = [sys.executable, "-c", script, str(run_dir), str(Path(__file__).parent)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        metrics = run_dir / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.split()[:2] == ["interrupted", str(int(number))], err
    assert (run_dir / "checkpoints" / "last.pt").exists()
    assert "Traceback" not in err, err
