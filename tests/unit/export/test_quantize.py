"""INT8: which layers it takes, that detections stay, and that it is written only where it pays."""

import importlib
import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

import detrkit
from detrkit.api.export import export_bundle
from detrkit.cli import app
from detrkit.detectors.accuracy import AccuracyData
from detrkit.errors import BundleError, DataError, UsageError
from detrkit.runtimes.report import Accuracy, Interval
from tests.support.exporting import PRESETS, small_detector
from tests.unit.detectors.splits import entry, write_split

pytest.importorskip("onnxscript", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")

import onnx
from onnx import TensorProto, helper, numpy_helper

from detrkit.runtimes.bundle import read_bundle
from detrkit.runtimes.compare import Difference
from detrkit.runtimes.engines import make_engine
from detrkit.runtimes.predictor import Predictor, load, make_inputs
from tests.support.bundles import BOXES, bundle_files, mean_graph, noise, write_files

quantize = importlib.import_module("detrkit.export.quantize")  # detrkit.export itself is the verb


def layered_graph() -> bytes:
    """A feed-forward block with positions, attention scores, a normalisation and a head."""
    random = np.random.default_rng(0)
    shapes = {"first": (32, 64), "second": (64, 32), "narrow": (4, 32), "wide": (32, 32), "head": (32, 32)}
    weights = {name: random.normal(size=shape).astype(np.float32) / 6 for name, shape in shapes.items()}
    weights["ones"] = np.ones(32, np.float32)
    nodes = [
        ("MatMul", ["x", "first"], "hidden"),
        ("Relu", ["hidden"], "active"),
        ("MatMul", ["active", "second"], "block"),
        ("MatMul", ["place", "narrow"], "inner"),
        ("Relu", ["inner"], "rectified"),
        ("MatMul", ["rectified", "wide"], "position"),
        ("Add", ["block", "position"], "sum"),
        ("Transpose", ["sum"], "turned"),
        ("MatMul", ["sum", "turned"], "scores"),
        ("MatMul", ["scores", "sum"], "attended"),
        ("LayerNormalization", ["attended", "ones"], "normal"),
        ("MatMul", ["normal", "head"], "y"),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in nodes],
        "layered",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
            for name, size in (("x", 32), ("place", 4))
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def run_graph(graph: bytes, batch):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options).run(None, batch)[0]


def test_layers_are_quantised_but_for_heads_scores_and_positions():
    random = np.random.default_rng(1)
    batches = [
        {"x": random.normal(size=(rows, 32)).astype(np.float32), "place": random.random((rows, 4), np.float32)}
        for rows in (3, 7, 12)
    ]
    graph = layered_graph()
    quantized = quantize.quantize_graph(graph, batches)
    model = onnx.load_from_string(quantized)
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8}
    assert {name.removesuffix("_quantized") for name in weights if "zero_point" not in name} == {"first", "second"}
    assert not model.metadata_props
    for batch in batches:
        before, after = run_graph(graph, batch), run_graph(quantized, batch)
        assert 0 < np.abs(after - before).max() < 0.1 * np.abs(before).max()


def test_a_graph_without_layers_is_refused():
    with pytest.raises(BundleError, match="no convolution or linear layer"):
        quantize.quantize_graph(mean_graph().SerializeToString(), [])


ACCURACY = Accuracy("data", "val", "0", 9, 9, 0.4, 0.6, torch_ap=0.402, change=Interval(-0.002, -0.004, 0.0))
TIMES = {"onnxruntime": 9.0, "onnxruntime int8": 5.0, "openvino": 8.0, "openvino-bf16": 6.0}


@pytest.mark.parametrize(
    ("accuracy", "times", "words"),
    [
        ({}, {}, []),
        ({"change": Interval(-0.005, -0.02, 0.0)}, {}, ["costs 0.50 AP points"]),
        ({"change": Interval(math.nan, math.nan, math.nan)}, {}, ["costs nan"]),
        ({"change": None}, {}, ["too few images"]),
        ({"torch_ap": 0.0}, {}, ["proves nothing"]),
        ({}, {"openvino-bf16": 4.0}, ["openvino-bf16 4.0 ms"]),
        ({}, {"openvino": 5.0}, ["not faster"]),
        ({"torch_ap": 0.0, "change": None}, {"openvino": 1.0}, ["nothing", "few", "faster"]),
    ],
)
def test_what_speaks_against_int8_is_said(accuracy, times, words):
    import msgspec

    proof = quantize.Int8Proof(msgspec.structs.replace(ACCURACY, **accuracy), {**TIMES, **times}, (4, 1), 0.5)
    assert len(proof.refusals) == len(words)
    assert all(word in refusal for word, refusal in zip(words, proof.refusals, strict=True))
    assert any("1.80 times as fast" in line for line in proof.lines())


@pytest.fixture
def scenes(tmp_path):
    """A data set in which the bundle of means finds everything."""
    sizes = [(40 + 4 * number, 64) for number in range(12)]
    objects = []
    for image_id, (height, width) in enumerate(sizes, start=1):
        for category_id, box in zip((18, 17), BOXES * np.array([width, height, width, height]), strict=True):
            objects.append(entry(image_id, category_id, [*box[:2], *(box[2:] - box[:2])]))
    plain = [{key: value for key, value in one.items() if key != "score"} for one in objects]
    write_split(tmp_path / "data", sizes, plain, {17: "cat", 18: "dog"})
    return tmp_path / "data"


@pytest.fixture
def bundle(tmp_path):
    return write_files(tmp_path / "float32.zip", bundle_files())


def shifted_graph() -> bytes:
    model = mean_graph()
    for tensor in model.graph.initializer:
        if tensor.name == "shares":
            tensor.CopyFrom(numpy_helper.from_array((BOXES[None] + 0.2).astype(np.float32), "shares"))
    return model.SerializeToString()


def test_int8_is_written_where_it_pays_and_refused_with_figures_where_not(scenes, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("detrkit.export.write"), "measure_cold_start", lambda *_: None)
    monkeypatch.setattr("detrkit.runtimes.verify.measure_cold_start", lambda *_: None)
    words = ["export", str(bundle), "--int8", "--data", str(scenes), "--calibrate", "val", "--out"]
    for graph, times, code, said in (
        (mean_graph().SerializeToString(), TIMES, 0, "1.80 times as fast"),
        (mean_graph().SerializeToString(), {**TIMES, "openvino-bf16": 4.0}, 1, "openvino-bf16 4.0 ms"),
        (shifted_graph(), TIMES, 1, "AP points, expected less than 0.5"),
    ):
        monkeypatch.setattr(quantize, "quantize_graph", lambda *_, graph=graph: graph)
        monkeypatch.setattr(quantize, "time_graphs", lambda *_, times=times: times)
        out = tmp_path / f"out-{said[:4]}"
        found = CliRunner().invoke(app, [*words, str(out)])
        assert (found.exit_code, said in found.output) == (code, True), found.output
        assert out.exists() == (code == 0)
    written = read_bundle(tmp_path / "out-1.80").manifest
    assert written.graphs[0].precision == "int8"
    assert written.provenance.calibration == {"data": "data", "split": "val", "images": 6}
    assert (written.report.accuracy.images, written.report.accuracy.change.value) == (6, 0.0)
    assert written.report.graph_ms == TIMES
    # AP on the images that INT8 was not calibrated with is repeated, and not what all images would give
    verified = detrkit.verify(tmp_path / "out-1.80", data=scenes)
    assert verified.passed
    assert not verified.warnings
    assert verified.report.accuracy.images == 6
    assert detrkit.load(tmp_path / "out-1.80").kind == "bundle"


def test_no_image_is_calibrated_with_and_measured_on(scenes, bundle, tmp_path):
    predictor = load(bundle)
    measured, calibrated = quantize.read_apart(predictor, AccuracyData(scenes), "val")
    ids = [set(part.index.image_ids.tolist()) for part in (measured, calibrated)]
    assert (len(ids[0]), len(ids[1]), ids[0] & ids[1]) == (6, 6, set())
    batches = list(quantize.calibration_batches(predictor, calibrated))
    assert sorted({len(batch["images"]) for batch in batches}) == [1, 2]
    one = scenes / "annotations" / "one.json"
    content = json.loads((scenes / "annotations" / "instances_val2017.json").read_text())
    one.write_text(json.dumps({**content, "images": content["images"][:1]}))
    with pytest.raises(DataError, match="no image besides"):
        quantize.read_apart(predictor, AccuracyData(one), "train")


def test_int8_is_refused_where_it_is_asked_wrongly(scenes, bundle, tmp_path):
    for options, words in (
        ({}, "name the data set"),
        ({"data": scenes, "raw": True}, "--raw out"),
        ({"data": scenes, "layout": "openvino"}, "--format"),
        ({"data": scenes, "gate": 0.0}, "AP points above 0"),
        ({"data": scenes, "gate": math.nan}, "AP points above 0"),
    ):
        with pytest.raises(UsageError, match=words):
            detrkit.export(bundle, tmp_path / "out", int8=True, **options)
    found = CliRunner().invoke(app, ["export", str(bundle), "--out", str(tmp_path / "out"), "--gate", "1"])
    assert (found.exit_code, "--int8" in found.output) == (2, True)


def test_int8_that_finds_something_else_in_padded_batches_is_refused(scenes, bundle, tmp_path, monkeypatch):
    """In whatever runtime: AP and time are measured on pictures alone."""
    asked = []

    def differs(predictor: Predictor) -> dict[str, Difference]:
        asked.append(predictor.engine.name)
        return {"golden/0.png": Difference(detections=2, missing=2 * (predictor.engine.name == "openvino"))}

    monkeypatch.setattr(quantize, "quantize_graph", lambda *_: mean_graph().SerializeToString())
    monkeypatch.setattr(quantize, "time_graphs", lambda *_: {**TIMES, "openvino int8": 6.0})
    monkeypatch.setattr(quantize, "compare_golden", differs)
    with pytest.raises(BundleError, match="in openvino, in padded batches"):
        detrkit.export(bundle, tmp_path / "out", int8=True, data=scenes, calibration="val")
    assert asked == ["onnxruntime", "openvino"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_detections_stay_in_padded_batches_of_any_size_too(preset, tmp_path):
    whole = export_bundle(small_detector(preset), tmp_path / "float32.zip")
    predictor = load(whole.path)
    images = [
        noise(size, seed) for seed, size in enumerate([(90, 120), (64, 200), (150, 80), (200, 200), (33, 47)])
    ]
    resized = [predictor.resize(image) for image in images]
    sizes = [image.shape[:2] for image in images]
    batches = [
        make_inputs([one], [size], predictor.preprocessing) for one, size in zip(resized, sizes, strict=True)
    ]
    quantized = quantize.quantize_graph(predictor.bundle.read_graph(), batches)
    kinds = [node.op_type for node in onnx.load_from_string(quantized).graph.node]
    assert kinds.count("QuantizeLinear") > 20
    for runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
        small = Predictor(predictor.bundle, make_engine(quantized, runtime, 1))
        alone, together = small.detect(images), small.detect_together(resized, sizes)
        for before, one, other in zip(predictor.detect(images), alone, together, strict=True):
            # of random weights a query or two may be chosen otherwise; AP of trained ones is held by the gate
            assert np.median(np.abs(one.scores - before.scores)) < 0.2
            assert np.abs(one.scores - other.scores).max() < 0.02
