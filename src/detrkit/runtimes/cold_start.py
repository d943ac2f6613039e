"""A bundle in a fresh process: how long until its first detections, and how much memory. ``python -m`` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import detrkit
from detrkit.runtimes.report import ColdStart

_LONGEST_S = 300


def measure_cold_start(path: str | os.PathLike[str], runtime: str, threads: int) -> ColdStart | None:
    """Load a bundle in a fresh process and detect in its first golden picture; None if that cannot be measured.

    Args:
        path: Folder or zip file.
        runtime: One of :data:`detrkit.runtimes.engines.ENGINES`.
        threads: Threads of one run.
    """
    own = Path(detrkit.__file__).parents[1]  # where a fresh process would not look, if it was not installed
    paths = os.pathsep.join(filter(None, [str(own), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", __name__, os.fspath(path), runtime, str(threads)]
    start = time.time()
    try:
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=_LONGEST_S,
            env={**os.environ, "PYTHONPATH": paths},
        )
        end, peak = json.loads(ran.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return ColdStart(round(end - start, 3), round(peak / 1e6, 1))


def _main(path: str, runtime: str, threads: str) -> None:
    """Detect once, and print when that was done and the memory that it took."""
    from detrkit.machine import peak_resident_bytes
    from detrkit.runtimes.predictor import load

    predictor = load(path, runtime, int(threads))
    predictor.detect([predictor.bundle.picture(predictor.bundle.manifest.golden[0].file)])
    print(json.dumps([time.time(), peak_resident_bytes()]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
