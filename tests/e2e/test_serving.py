"""``detrkit serve`` as a process: it drains, exchanges bundles under load, and says when it cannot start."""

from __future__ import annotations

import io
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("onnxruntime", reason="the extra runtime is not installed")

from detrkit.cli import app
from tests.support.bundles import bundle_files, noise, write_files
from tests.support.serving import Load, running

TIMES = 20
FAST = ("--streams", "1", "--batch-size", "4", "--threads", "1")


@pytest.fixture
def content() -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise((40, 60))).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_files(tmp_path / "bundle", bundle_files())


def terminate_under_load(bundle: Path, content: bytes, log: Path) -> int:
    """Every request that the log knows of was answered, and the process ended well."""
    with running(bundle, *FAST, log=log) as server:
        load = Load(server, content)
        load.wait_for(20)
        assert server.stop() == 0
        load.stop()
        accepted = {line["request_id"]: line["status"] for line in server.lines() if line["event"] == "request"}
        assert server.lines()[-1]["event"] == "stopped"
    lost = {name: status for name, status in accepted.items() if name not in load.answers}
    assert lost == {}
    assert {status for status, _ in load.answers.values()} == {200}
    return len(load.answers)


def test_sigterm_answers_what_was_accepted(bundle, content, tmp_path):
    assert terminate_under_load(bundle, content, tmp_path / "log.jsonl") >= 20


@pytest.mark.slow
def test_sigterm_answers_what_was_accepted_every_time(bundle, content, tmp_path):
    for number in range(TIMES):
        assert terminate_under_load(bundle, content, tmp_path / f"log-{number}.jsonl") >= 20


@pytest.mark.slow
@pytest.mark.parametrize("way", ["request", "SIGHUP"])
def test_bundles_are_exchanged_under_load_without_a_failed_request(way, content, tmp_path):
    link = tmp_path / "current"
    versions = [write_files(tmp_path / str(i), bundle_files(licence=f"v{i}")) for i in range(2)]
    broken = write_files(tmp_path / "broken", {**bundle_files(licence="v2"), "graph.onnx": b"no"})
    link.symlink_to(versions[0])
    with running(f"mean={link}", *FAST, log=tmp_path / "log.jsonl") as server:
        load = Load(server, content)
        for number in range(1, TIMES + 1):
            for target, outcome in ((broken, 409), (versions[number % 2], 200)):
                link.unlink()
                link.symlink_to(target)
                before = len(load.answers)
                if way == "request":
                    connection = server.connect()
                    connection.request("POST", "/v1/models/mean/reload")
                    assert connection.getresponse().status == outcome
                    connection.close()
                else:
                    done = len([line for line in server.lines() if line["event"] in ("loaded", "message")])
                    os.kill(server.process.pid, signal.SIGHUP)
                    end = time.monotonic() + 30
                    while len([x for x in server.lines() if x["event"] in ("loaded", "message")]) == done:
                        assert time.monotonic() < end
                        time.sleep(0.01)
                load.wait_for(before + 8)
        load.stop()
        assert server.stop() == 0
    assert {status for status, _ in load.answers.values()} == {200}
    scores = {answer["images"][0]["detections"][0]["score"] for _, answer in load.answers.values()}
    assert len(scores) == 1
    assert len({answer["version"] for _, answer in load.answers.values()}) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--host", "0.0.0.0"), 2, "token"),
        (("--token-file", "missing"), 2, "missing"),
        (("--host", "256.0.0.1"), 2, "token"),
        (("--runtime", "nothing"), 2, "runtime"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_a_line(arguments, code, word, bundle):
    done = CliRunner().invoke(app, ["serve", "--port", "0", str(bundle), *arguments])
    assert done.exit_code == code
    assert word in done.stderr


def test_a_bundle_that_was_changed_does_not_start(bundle):
    shutil.copy(bundle / "bundle.json", bundle / "graph.onnx")
    done = CliRunner().invoke(app, ["serve", "--port", "0", str(bundle)])
    assert done.exit_code == 1
    assert "graph.onnx" in done.stderr
