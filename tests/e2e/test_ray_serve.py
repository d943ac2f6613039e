"""The server on Ray Serve: two replicas, one of them killed under load."""

from __future__ import annotations

import collections
import contextlib
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from detrkit.deployment.write import write_deployment
from detrkit.errors import UsageError
from tests.support.bundles import bundle_files, noise, write_files

pytest.importorskip("ray")

PORT, TOKEN, CLIENTS = 18437, "a-token-of-the-tests", 8
SCRIPT = """
import os
import sys
from pathlib import Path

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
    RAY_worker_niceness="0",
    RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="120",  # on a busy machine
    RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S="120",
)
import ray
import ray.serve._private.api
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

ray.serve._private.api.HTTP_PROXY_TIMEOUT = 300
ray.init(
    address="local",
    num_cpus=4,
    include_dashboard=False,
    log_to_driver=True,
    object_store_memory=100 * 2**20,
    _node_ip_address="127.0.0.1",
    runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
)
config = yaml.safe_load(Path(sys.argv[1]).read_text())
config["http_options"]["port"] = int(sys.argv[2])
serve.start(http_options=config["http_options"])
_get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))
for line in sys.stdin:
    status = serve.status().applications["mean"]
    running = sum(found.replica_states.get("RUNNING", 0) for found in status.deployments.values())
    print(running, status.message.replace(chr(10), " "), flush=True)
serve.shutdown()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Ray with the application that `detrkit deploy --to ray` wrote."""
    place = tmp_path_factory.mktemp("serve")
    bundle = write_files(place / "mean", bundle_files())
    assert write_deployment(bundle, "ray", place / "out", cpus=1, replicas=(2, 2)).passed
    (place / "start.py").write_text(SCRIPT)
    with (place / "log").open("w") as log, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETRKIT_SERVE_TOKEN", TOKEN)
        command = [sys.executable, "start.py", "out/serve.yaml", str(PORT)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        process = subprocess.Popen(command, cwd=place, text=True, **pipes)  # type: ignore[call-overload]
        try:
            wait_for_replicas(process, 2, place / "log")
            yield process, place / "log"
        finally:
            session = psutil.Process(process.pid).children(recursive=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=60)
            for child in session:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            process.kill()
            process.wait()


def wait_for_replicas(process: subprocess.Popen[str], number: int, log: Path) -> None:
    said = ""
    for _ in range(1000):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        said = process.stdout.readline()
        if said.startswith(f"{number} "):
            return
        assert said, log.read_text()[-3000:]
        time.sleep(0.2)
    raise AssertionError(said + log.read_text()[-3000:])


def picture() -> bytes:
    content = io.BytesIO()
    Image.fromarray(noise((480, 640))).save(content, format="PNG")
    return content.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_replica_that_is_killed_under_load_takes_only_its_own_requests(
    cluster: tuple[subprocess.Popen[str], Path],
):
    body, stop = picture(), threading.Event()
    answers: list[tuple[float, int]] = []
    lost: list[str] = []

    def ask() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as client:
            while not stop.is_set():
                try:
                    answer = client.post("/v1/detect", content=body, headers={"Authorization": f"Bearer {TOKEN}"})
                except httpx.HTTPError as error:
                    lost.append(repr(error))
                else:
                    answers.append((time.monotonic(), answer.status_code))

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    while len(answers) < 100 and not lost:
        time.sleep(0.1)
    replicas = [child for child in psutil.Process(cluster[0].pid).children(recursive=True) if is_replica(child)]
    assert len(replicas) == 2
    killed_at = time.monotonic()
    replicas[0].kill()
    wait_for_replicas(cluster[0], 1, cluster[1])
    wait_for_replicas(cluster[0], 2, cluster[1])
    recovered_at = time.monotonic()
    while answers[-1][0] < recovered_at + 3:
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    counts = collections.Counter(status for _, status in answers)
    failed = [at - killed_at for at, status in answers if status != 200]
    back = recovered_at - killed_at
    print(f"{dict(counts)}, failed {[round(at, 2) for at in failed]} s after the kill, back in {back:.1f} s")
    assert lost == []  # each was answered
    assert set(counts) <= {200, 500, 502, 503}
    assert len(failed) <= CLIENTS
    assert all(0 <= at < 10 for at in failed)
    assert sum(status == 200 for at, status in answers if at > recovered_at) > 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_wants_the_token_and_tells_its_health(cluster: tuple[subprocess.Popen[str], Path]):
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as client:
        assert client.post("/v1/detect", content=picture()).status_code == 401
        assert client.get("/health/ready").status_code == 200
        found = client.get("/v1/models", headers={"Authorization": f"Bearer {TOKEN}"})
        assert found.status_code == 200
        assert "mean" in found.text


def is_replica(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "ServeReplica" in " ".join(process.cmdline())
    return False


def test_without_a_token_there_is_no_application(monkeypatch: pytest.MonkeyPatch):
    from detrkit.serving.ray_app import build

    pytest.importorskip("fastapi")
    monkeypatch.delenv("DETRKIT_SERVE_TOKEN", raising=False)
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    monkeypatch.setattr(sys.modules["ray"], "serve", None, raising=False)
    with pytest.raises(UsageError, match="DETRKIT_SERVE_TOKEN"):
        build({"bundle": "bundle"})
