"""``detrkit optimize`` on a model and images of a few pixels, its graphs replaced by one that is quick to make."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

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
        if next(times) == 3:
            raise KeyboardInterrupt
        return time_in_turns(*arguments)

    monkeypatch.setattr(measuring, "time_in_turns", killed)
    killed_run = run(*words)
    assert killed_run.exit_code == 130, killed_run.output
    journal = out / verb.JOURNAL
    with journal.open("ab") as file:
        file.write(b'{"name": "accuracy d1')
    measured = list(quick)
    assert measured
    # goes on
    found = run(*words)
    assert found.exit_code == 0, found.output
    assert "going on" in found.output
    assert not set(measured) & set(quick[len(measured) :])  # nothing is detected twice
    content = json.loads((out / "results.json").read_text())
    names = [point["name"] for point in content["points"]]
    assert names[0] == "d2-q12-s128@onnxruntime"
    assert {"d1-q12-s128@onnxruntime", "d2-q6-s128@onnxruntime", "d2-q12-s96@onnxruntime"} <= set(names)
    assert content["points"][0]["times_as_fast"] == 1  # whatever the noise: never recommended to itself
    assert "onnxruntime-int8" in " ".join([*names, *content["refused"]])  # offered, or refused with figures
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
    # another model
    monkeypatch.setattr(verb, "load_model", lambda *_: small_model("detr-tiny-two-stage"))
    other = run(*words)
    assert (other.exit_code, "another study" in other.output) == (2, True)


def test_what_is_asked_wrongly_is_refused_and_a_model_that_finds_nothing_too(data, tmp_path, quick, monkeypatch):
    for options, message in ((("--target", "gpu"), "expected cpu"), (("--gate", "0"), "gate is 0.0")):
        found = run("run", "--data", data, "--out", tmp_path / "out", *options)
        assert (found.exit_code, message in found.output) == (2, True)
    monkeypatch.undo()
    built = small_model("detr-tiny")
    monkeypatch.setattr(verb, "load_model", lambda *_: built)
    found = run("run", "--data", data, "--out", tmp_path / "out")
    assert found.exit_code == 1, found.output
