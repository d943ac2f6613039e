"""``detrkit optimize`` on a model and images of a few pixels, its graphs replaced by one that is quick to make."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from detrkit.api import optimize as verb
from detrkit.classes import ClassMap
from detrkit.cli import app
from detrkit.curation.synthetic import write_synthetic
from detrkit.optimizing import bench as measuring
from tests.unit.export.test_variant import small_model

pytest.importorskip("onnx", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")

from tests.support.bundles import bundle_files, mean_graph, write_files


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_synthetic(folder, train_images=1, val_images=6, size=64, seed=1)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was detected on, in order; graphs are quick, and a model that finds nothing is let pass."""
    asked: list[str] = []
    collect = measuring.collect

    def counted(detector, *arguments, **options):
        asked.append(detector.name)
        return collect(detector, *arguments, **options)

    built = small_model("detr-tiny")

    named = ClassMap(("circle", "square", "triangle"), (1, 2, 3), logit_index=(2, 0, 3), num_labels=5)
    built = dataclasses.replace(built, class_map=named)
    files = bundle_files(classes=named.to_dict())
    monkeypatch.setattr(verb, "load_model", lambda *_: built)
    monkeypatch.setattr(measuring, "collect", counted)
    monkeypatch.setattr(measuring, "trace_graph", lambda *_: None)
    monkeypatch.setattr(measuring, "onnx_graph", lambda *_: mean_graph().SerializeToString())
    monkeypatch.setattr(measuring, "write_bundle", lambda _built, out, **_: write_files(out, files))
    monkeypatch.setattr(measuring, "ENGINES", {"onnxruntime": None})
    monkeypatch.setattr(measuring, "EXACT", ("onnxruntime",))
    monkeypatch.setattr(measuring, "calibration_batches", lambda *_: [])
    monkeypatch.setattr(measuring, "quantize_graph", lambda *_: mean_graph().SerializeToString())
    monkeypatch.setattr(measuring, "LEAST_RUNS", 2)
    monkeypatch.setattr(measuring, "_MOST_RUNS", 2)
    monkeypatch.setattr("detrkit.optimizing.search.QUERIES", (6,))
    monkeypatch.setattr(verb, "_check_finds", lambda *_: None)
    return asked


def run(*words: object):
    return CliRunner().invoke(app, ["optimize", *map(str, words)])


def test_killed_it_goes_on_and_another_model_is_refused(quick, data, tmp_path, monkeypatch):
    out, words = tmp_path / "out", ("run", "--data", data, "--out", tmp_path / "out")
    # killed while it wrote a result
    time_in_turns = measuring.time_in_turns
    times = iter(range(100))

    def killed(*arguments):
        turn = next(times)
        if turn == 3:
            raise KeyboardInterrupt
        measured = time_in_turns(*arguments)
        return {**measured, "ms": measured["whole_ms"] * (turn + 1) / 100}  # INT8 is fast, and of others d1

    monkeypatch.setattr(measuring, "time_in_turns", killed)
    killed_run = run(*words)
    assert killed_run.exit_code == 130, killed_run.output
    journal = out / verb.JOURNAL
    with journal.open("ab") as file:
        file.write(b'{"name": "accuracy d1')
    measured = list(quick)
    assert measured
    found = run(*words)
    assert found.exit_code == 0, found.output
    assert "going on" in found.output
    assert not set(measured) & set(quick[len(measured) :])  # nothing is detected twice
    content = json.loads((out / "results.json").read_text())
    names = [point["name"] for point in content["points"]]
    assert names[0] == "d2-q12-s128@onnxruntime"
    assert {"d1-q12-s128@onnxruntime", "d2-q6-s128@onnxruntime", "d2-q12-s96@onnxruntime"} <= set(names)
    assert content["points"][0]["times_as_fast"] == 1  # whatever the noise: never recommended to itself
    assert "d1-q12-s128@onnxruntime-int8" in {*names} & {*quick}  # and detected by itself, not as float32
    assert all((out / name).is_file() for name in verb.RESULTS)
    # done: nothing is measured again, and a point can be picked
    before, written = len(quick), []
    monkeypatch.setattr(verb, "export_bundle", lambda model, path, **how: written.append((path, how["variant"])))
    picked = run(*words, "--pick", "d1-q12-s128@onnxruntime", "--json")
    assert picked.exit_code == 0, picked.output
    assert json.loads(picked.stdout)["picked"] == str(out / verb.BUNDLE)
    assert written[0][1].decoder_layers == 1
    assert len(quick) == before
    lost = run(*words, "--pick", "d9")
    assert (lost.exit_code, "d9" in lost.output) == (2, True)
    monkeypatch.setattr(verb, "load_model", lambda *_: small_model("detr-tiny-two-stage"))
    other = run(*words)
    assert (other.exit_code, "another study" in other.output) == (2, True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore")  # of forking beside threads, which are not in the middle of anything
def test_killed_at_any_moment_it_goes_on_with_what_was_measured(quick, data, tmp_path, request):
    if "ALONE" not in os.environ:  # a fork would wait for threads that other tests left in this process
        words = [sys.executable, "-m", "pytest", "-m", "slow", f"{__file__}::{request.node.name}"]
        subprocess.run(words, env={**os.environ, "ALONE": "1"}, check=True)
        return
    # one that is left alone, to know how long it takes and what it ends with
    start = time.monotonic()
    assert os.waitpid(forked("run", "--data", data, "--out", tmp_path / "alone"), 0)[1] == 0
    seconds = time.monotonic() - start
    # one that is killed a dozen times, then left alone
    random, words = np.random.default_rng(), ("run", "--data", data, "--out", tmp_path / "out")
    before, kills, lengths = b"", 0, set()
    while kills < 12:
        child = forked(*words)
        time.sleep(random.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        kills += os.waitpid(child, 0)[1] == signal.SIGKILL
        journal = tmp_path / "out" / verb.JOURNAL
        content = journal.read_bytes() if journal.exists() else b""
        assert content.startswith(before[: before.rfind(b"\n") + 1])  # what was measured stays
        before = content
        lengths.add(content.count(b"\n"))
        if (tmp_path / "out" / "results.json").exists():  # it ended before it was killed: once more from the start
            shutil.rmtree(tmp_path / "out")
            before = b""
    assert len(lengths) > 2
    assert os.waitpid(forked(*words), 0)[1] == 0
    # the same points, but for what depends on times, with the same AP, and none measured twice
    ends = [json.loads((tmp_path / out / "results.json").read_text()) for out in ("alone", "out")]
    accuracies = [{point["name"]: point["accuracy"] for point in end["points"]} for end in ends]
    both = accuracies[0].keys() & accuracies[1].keys()
    assert len(both) >= 4
    assert all(accuracies[0][name] == accuracies[1][name] for name in both)
    names = [json.loads(line)["name"] for line in journal.read_bytes().splitlines()[1:]]
    assert len(names) == len(set(names))


def forked(*words: object) -> int:
    """Run the command in a process that has the stand-ins of this one, and return its number."""
    child = os.fork()
    if not child:
        try:
            os._exit(run(*words).exit_code)
        finally:
            os._exit(1)
    return child


def test_what_is_asked_wrongly_is_refused_and_a_model_that_finds_nothing_too(data, tmp_path, quick, monkeypatch):
    for options, message in ((("--target", "gpu"), "expected cpu"), (("--gate", "0"), "gate is 0.0")):
        found = run("run", "--data", data, "--out", tmp_path / "out", *options)
        assert (found.exit_code, message in found.output) == (2, True)
    monkeypatch.undo()
    built = small_model("detr-tiny")
    monkeypatch.setattr(verb, "load_model", lambda *_: built)
    found = run("run", "--data", data, "--out", tmp_path / "out")
    assert found.exit_code == 1, found.output
