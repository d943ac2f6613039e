"""`detrkit export` and `detrkit verify`: what is asked wrongly, and exit codes."""

import importlib
import json

import pytest
from typer.testing import CliRunner

import detrkit
from detrkit.cli import app
from detrkit.errors import BundleError, UsageError
from detrkit.export.graph import DetectionGraph
from detrkit.families.build import get_family
from detrkit.families.family import BuiltModel
from detrkit.runtimes.threads import usable_cpus
from tests.support.exporting import PRESETS, small_detector

pytest.importorskip("onnxscript", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")

from tests.support.bundles import bundle_files, write_files


def run(*words: str):
    return CliRunner().invoke(app, list(words))


def test_verify_says_what_it_found_and_exits_with_0_1_or_2(place_of):
    whole = write_files(place_of("whole.zip"), bundle_files())
    assert run("verify", str(whole)).exit_code == 0
    assert json.loads(run("verify", str(whole), "--json").output)["passed"] is True
    cut = place_of("cut.zip")
    cut.write_bytes(whole.read_bytes()[:-40])
    for words, code, message in (
        ((str(cut),), 1, "cut off"),
        ((str(place_of("absent")),), 1, "check the path"),
        ((str(whole), "--runtime", "nothing"), 2, "onnxruntime, openvino"),
    ):
        found = run("verify", *words)
        assert (found.exit_code, message in found.output) == (code, True), found.output


@pytest.fixture
def place_of(tmp_path):
    return lambda name: tmp_path / name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "onnx"), "bundle, published, hub"),
        (("--format", "hub", "--opset", "18"), "leave them out"),
        (("--opset", "12"), "18, 20, 23"),
    ],
)
def test_export_refuses_what_it_cannot_do(words, message, tmp_path, monkeypatch):
    detector = small_detector(PRESETS[0])
    family = get_family(detector.config.model)
    built = BuiltModel(detector.model, family, detector.config, detector.class_map)
    monkeypatch.setattr("detrkit.api.export.load_model", lambda *_: built)
    found = run("export", "model", "--out", str(tmp_path / "out"), *words)
    assert (found.exit_code, message in found.output) == (2, True), found.output


def test_only_detrkits_own_models_are_exported(tmp_path):
    write_files(tmp_path / "a.zip", bundle_files())
    with pytest.raises(UsageError, match="is a bundle model"):
        detrkit.export(detrkit.load(tmp_path / "a.zip"), tmp_path / "b")
    with pytest.raises(UsageError, match="cannot be written as hub"):
        detrkit.export(small_detector(PRESETS[0]), tmp_path / "b", layout="hub")


def test_nothing_is_written_over_files_of_others(tmp_path):
    (tmp_path / "bundle.json").write_text("mine")
    with pytest.raises(UsageError, match=r"bundle\.json"):
        detrkit.export(small_detector(PRESETS[0]), tmp_path)


def test_a_graph_that_finds_something_else_is_not_written(tmp_path, monkeypatch):
    module = importlib.import_module("detrkit.export.write")  # detrkit.export itself is the verb
    monkeypatch.setattr(module, "export_graph", lambda *_, **__: bundle_files()["graph.onnx"])
    with pytest.raises(BundleError, match="does not find"):
        detrkit.export(small_detector(PRESETS[0]), tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_a_bundle_holds_its_thresholds_and_refuses_what_it_holds_itself(tmp_path):
    path = write_files(tmp_path / "a.zip", bundle_files())
    detector = detrkit.load(path)
    assert detector.kind == "bundle"
    assert detector.class_map.names == ("cat", "dog")
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
        assert detrkit.load(f"{path}@{name}").stages.predictor.engine.name == name
    for asked in ({"model": "detr-tiny"}, {"classes": "coco"}, {"device": "cuda"}, {"precision": "bf16"}):
        with pytest.raises(UsageError, match=r"a\.zip|cpu"):
            detrkit.load(path, **asked)


def test_the_graph_in_torch_is_the_detector(make_image):
    import torch

    for preset in PRESETS:
        detector = small_detector(preset)
        family = get_family(detector.config.model)
        graph = DetectionGraph(BuiltModel(detector.model, family, detector.config, detector.class_map)).eval()
        size = detector.config.transforms.eval_size
        image = torch.from_numpy(make_image(size_hw=(size, size)))
        whole = torch.tensor([[size, size]])
        scores, labels, boxes = graph(image[None], whole, whole)
        [found] = detector.predict_batch([image.permute(2, 0, 1)])
        assert torch.allclose(scores[0], torch.from_numpy(found.scores), atol=1e-5)
        assert labels[0].tolist() == found.class_ids.tolist()
        assert torch.allclose(boxes[0], torch.from_numpy(found.boxes_xyxy), atol=1e-2)


def test_a_bundle_is_timed_with_its_own_threads(tmp_path):
    path = write_files(tmp_path / "a.zip", bundle_files())
    rows = detrkit.benchmark([path], repeats=1, warm_up=1).rows
    assert rows[0].latency.threads == usable_cpus()
    rows = detrkit.benchmark([path], repeats=1, warm_up=1, threads=[usable_cpus() + 1]).rows
    assert "threads of its own" in rows[0].problem
