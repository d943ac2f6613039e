"""`detrkit export` and `detrkit verify`: what is asked wrongly, and exit codes."""

import importlib
import json
import subprocess

import pytest
from typer.testing import CliRunner

import detrkit
from detrkit.cli import app
from detrkit.errors import BundleError, UsageError
from detrkit.export.formats import tensorrt_script
from detrkit.export.graph import DetectionGraph, GraphOptions, gather_samples
from detrkit.families.build import get_family
from detrkit.families.family import BuiltModel
from detrkit.machine import usable_cpus
from detrkit.profiling.speed_report import speed_lines
from detrkit.runtimes.bundle import GraphRecord
from tests.support.exporting import PRESETS, small_detector

pytest.importorskip("onnxscript", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")

from tests.support.bundles import bundle_files, mean_graph, write_files


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
        (("--format", "onnx"), "bundle, openvino, tensorrt, program, published, hub"),
        (("--format", "hub", "--opset", "18"), "leave them out"),
        (("--opset", "12"), "18, 20, 23"),
        (("--format", "published", "--shape", "800x800", "--gather"), "--shape, --gather"),
        (("--format", "program", "--precision", "16"), "--precision"),
        (("--format", "program"), r".pt2"),
        (("--precision", "8"), "32 or 16"),
        (("--shape", "800"), "800x1066"),
        (("--shape", "0x64"), "1 pixel or more"),
        (("--batch", "2"), "fixed shape"),
        (("--layout", "chw"), "nhwc or nchw"),
        (("--shape", "100x90"), "--shape 142x128"),
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
    files = {"graph.onnx": bundle_files()["graph.onnx"]}
    monkeypatch.setattr(module, "write_graphs", lambda *_: (files, (GraphRecord("graph.onnx", 20),)))
    for name in ("a.zip", "folder"):
        with pytest.raises(BundleError, match="does not find"):
            detrkit.export(small_detector(PRESETS[0]), tmp_path / name)
        assert not (tmp_path / name).exists()


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


def test_gathers_read_maps_as_grid_sample_does():
    import torch

    generator = torch.Generator().manual_seed(0)
    for size in ((5, 7), (1, 1), (1, 4)):
        maps = torch.randn(3, 4, *size, generator=generator)
        grid = 3 * torch.rand(3, 6, 5, 2, generator=generator) - 1.5  # beyond the edges too
        expected = torch.nn.functional.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)
        assert torch.allclose(gather_samples(maps, grid), expected, atol=1e-5)


@pytest.mark.parametrize("shape_hw", [None, (128, 160)])
def test_the_tensorrt_script_is_a_script_with_the_models_shapes(shape_hw, tmp_path):
    model = mean_graph()
    model.graph.node[0].name, model.graph.node[0].op_type = "norm_1", "LayerNormalization"
    transforms = small_detector(PRESETS[0]).config.transforms
    text = tensorrt_script(model.SerializeToString(), transforms, GraphOptions(shape_hw=shape_hw))
    (tmp_path / "script").write_text(text)
    (tmp_path / "trtexec").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "trtexec").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    ran = subprocess.run(
        ["sh", tmp_path / "script", "fp16"], env={"PATH": path}, capture_output=True, text=True, check=True
    )
    words = ran.stdout.split()
    assert {"--onnx=graph.onnx", "--fp16", "--precisionConstraints=obey", "--layerPrecisions=norm_1:fp32"} <= set(
        words
    )
    assert any(word.startswith("--maxShapes=images:8x3x192x192,sizes:8x2") for word in words) == (shape_hw is None)
    assert subprocess.run(["sh", tmp_path / "script", "x"], capture_output=True, check=False).returncode == 2


def test_a_bundle_is_timed_with_its_own_threads(tmp_path):
    path = write_files(tmp_path / "a.zip", bundle_files())
    rows = detrkit.benchmark([path], repeats=1, warm_up=1).rows
    assert rows[0].latency.threads == usable_cpus()
    rows = detrkit.benchmark([path], repeats=1, warm_up=1, threads=[usable_cpus() + 1]).rows
    assert "threads of its own" in rows[0].problem


def test_a_bundle_is_timed_in_streams_and_in_a_fresh_process(tmp_path):
    path = write_files(tmp_path / "a.zip", bundle_files())
    speed = detrkit.benchmark([path], streams=[1, 2], repeats=2, warm_up=1, cold_start=True)
    assert [(row.latency.streams, row.latency.runs) for row in speed.rows] == [(1, 2), (2, 12)]
    assert all(row.runtime.startswith("onnxruntime") and row.runtime.endswith("float32") for row in speed.rows)
    assert speed.rows[0].cold_start.seconds > 0
    latency = speed.rows[1].latency
    assert latency.images_per_s == 12 / latency.busy_s
    text = "\n".join(speed_lines(speed))
    for words in ("2 streams", "cold start, MB", "onnxruntime"):
        assert words in text
    rows = detrkit.benchmark([path, "detr-tiny"], streams=[2], backends=["eager", "compile"], repeats=1).rows
    told = [row.problem for row in rows]
    assert [("compiled already" in one, "one batch at a time" in one) for one in told] == [
        (False, False),
        (False, True),
        (True, False),
        (False, True),
    ]
