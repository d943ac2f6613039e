"""Exported models against torch: real pictures of many sizes, alone and in padded batches, in both runtimes.

Tolerances are float32's in graphs whose sums run in another order; see ``detrkit.runtimes.compare.TOLERANCES``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detrkit.api.export import export, export_bundle
from detrkit.detectors.bundle import bundle_detector
from detrkit.detectors.detector import Detector
from detrkit.export.graph import GraphOptions, round_to_half
from detrkit.runtimes.bundle import read_bundle
from detrkit.runtimes.compare import TOLERANCES, compare_detections
from detrkit.runtimes.engines import make_engine
from detrkit.runtimes.predictor import load
from detrkit.runtimes.verify import verify_bundle
from tests.support.exporting import (
    PRESETS,
    REALTIME,
    detect_alone,
    differences,
    near_ties,
    real_pictures,
    small_detector,
)

pytest.importorskip("onnxscript", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")

FLOAT32 = ("onnxruntime", "openvino")
"""Random weights show nothing of bf16, in which their near ties fall otherwise; AP of trained ones does."""


@pytest.fixture(scope="module", params=[PRESETS[0], pytest.param(PRESETS[1], marks=pytest.mark.slow), *REALTIME])
def exported(request, tmp_path_factory) -> tuple[Detector, Path]:
    """A small model of each family, and its bundle."""
    detector = small_detector(request.param)
    path = tmp_path_factory.mktemp("bundle") / f"{request.param}.zip"
    result = export_bundle(detector, path)
    assert result.difference is not None
    assert result.difference.detections > 50
    return detector, path


@pytest.fixture(scope="module")
def pictures(shared_data) -> list[np.ndarray]:
    return real_pictures(shared_data)


@pytest.mark.parametrize("runtime", FLOAT32)
def test_real_pictures_of_many_sizes_give_torchs_detections(runtime, exported, pictures, capsys):
    pytest.importorskip(runtime)
    detector, path = exported
    assert len(pictures) >= 44
    expected = detect_alone(detector, pictures)
    found = differences(expected, load(path, runtime, threads=1), pictures, TOLERANCES[runtime])
    with capsys.disabled():
        print(f"\n{path.stem} in {runtime}: {found}")
    assert found.detections > 500
    assert not found.missing


def test_a_bundle_detects_as_its_model_whatever_way_it_is_asked(exported, pictures):
    detector, path = exported
    ours = bundle_detector(path)
    images = [torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures[-8:]]
    for one, other in zip(detector.detect_images(images), ours.detect_images(images, 3), strict=True):
        assert not compare_detections(one, other, TOLERANCES["onnxruntime"]).missing
    for mine, theirs in zip(ours.predict(pictures[:3]), load(path).predict(pictures[:3]), strict=True):
        assert type(mine) is type(theirs)
        assert np.allclose(mine.xyxy, theirs.xyxy, atol=1e-3)
        assert np.array_equal(mine.class_id, theirs.class_id)
        assert mine.data["class_name"].tolist() == theirs.data["class_name"].tolist()


@pytest.mark.parametrize("runtime", FLOAT32)
def test_the_golden_pictures_verify(runtime, exported):
    pytest.importorskip(runtime)
    found = verify_bundle(exported[1], runtime)
    assert found.passed, found.lines()


def test_nothing_of_this_machine_is_written(exported):
    content = exported[1].read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_dimensions_have_names(exported):
    import onnx

    graph = onnx.load_from_string(load(exported[1]).bundle.read_graph()).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "images": ["batch", "height", "width", 3],
        "sizes": ["batch", 2],
        "original_sizes": ["batch", 2],
        "scores": ["batch", 12],
        "labels": ["batch", 12],
        "boxes": ["batch", 12, 4],
    }
    assert not {"IsNaN", "IsInf"} & {node.op_type for node in graph.node}  # rows that attend nothing


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
def test_other_operator_sets_give_the_same(opset, tmp_path):
    result = export_bundle(small_detector(PRESETS[0]), tmp_path / "bundle", options=GraphOptions(opset))
    assert result.manifest.graphs[0].opset == opset
    assert verify_bundle(tmp_path / "bundle").passed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "options"),
    [
        (PRESETS[0], {"shape_hw": (192, 192), "batch": 3, "axes": "nchw"}),
        (PRESETS[0], {"weights": "16"}),
        (PRESETS[0], {"weights": "16", "layout": "openvino"}),
        (PRESETS[1], {"weights": "16"}),
        (PRESETS[1], {"gather": True}),
        (PRESETS[1], {"layout": "tensorrt", "shape_hw": (192, 192)}),
    ],
)
def test_every_option_is_at_parity(preset, options, pictures, tmp_path):
    detector = small_detector(preset)
    path = export(detector, tmp_path / "bundle.zip", **options)
    if "weights" in options:  # the graph is held to the weights that it has, and these to a rounding
        detector.model.prepare_inference()
        whole = [parameter.clone() for parameter in detector.model.parameters()]
        round_to_half(detector.model)
        for one, other in zip(whole, detector.model.parameters(), strict=True):
            assert torch.allclose(one, other, rtol=2**-11, atol=2**-24)
    predictor = load(path, threads=1)
    graph = predictor.bundle.manifest.graphs[0]
    assert graph.weights == options.get("weights", "32")
    ties = near_ties(detector, pictures)
    assert len(ties) <= 1, "more would be a fault of the choice"
    found = differences(
        detect_alone(detector, pictures), predictor, pictures, TOLERANCES[predictor.engine.name], ties=ties
    )
    assert found.detections > 500
    assert not found.missing
    content = b"".join(predictor.bundle.read(name) for name in filter(None, (graph.file, graph.weights_file)))
    parameters = sum(parameter.numel() for parameter in detector.model.parameters() if parameter.ndim > 1)
    if "weights" in options and "layout" not in options:
        assert len(content) < 2.3 * parameters + 600_000  # operators, whatever the weights
    assert (b"GridSample" in content) == (preset == PRESETS[1] and not {"gather", "layout"} & set(options))


@pytest.mark.slow
def test_a_program_is_loaded_by_torch_alone(tmp_path):
    detector = small_detector(PRESETS[1])
    path = export(detector, tmp_path / "model.pt2", layout="program")
    image = torch.randint(0, 256, (128, 150, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    [expected] = detector.predict_batch([image.permute(2, 0, 1)])
    batch = torch.zeros(2, 140, 160, 3, dtype=torch.uint8)
    batch[1, :128, :150] = image
    size = torch.tensor([[140, 160], [128, 150]])
    scores, _, boxes = torch.export.load(path).module()(batch, size, size.clone())
    assert np.allclose(scores[1].detach(), expected.scores, atol=1e-4)
    assert np.allclose(boxes[1].detach(), expected.boxes_xyxy, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [*PRESETS, *REALTIME])
def test_raw_outputs_are_the_last_layers(preset, tmp_path):
    detector = small_detector(preset)
    export_bundle(detector, tmp_path / "bundle", options=GraphOptions(raw=True))
    engine = make_engine(read_bundle(tmp_path / "bundle").read_graph(), threads=1)
    sizes = np.array([[96, 80], [64, 70]])
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 80, 3)).astype(np.uint8)
    logits, boxes = engine.run({"images": images, "sizes": sizes, "original_sizes": sizes})
    for row, (height, width) in enumerate(sizes):
        alone = torch.from_numpy(images[row, :height, :width]).permute(2, 0, 1)
        outputs = detector.stages.forward(detector.stages.preprocess([alone]))
        assert np.allclose(logits[row], outputs.logits[-1, 0], atol=1e-3)
        assert np.allclose(boxes[row], outputs.boxes_cxcywh[-1, 0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model.norm_between": True},
        {"model.position": "learned", "model.query_init": "normal"},
        {"model.pre_norm": False, "model.position_at_input": False},
        {"model.backbone_norm": "group"},
        {"model.activation": "gelu"},
        {"model.padding": "published"},
    ],
)
def test_other_networks_give_torchs_detections_too(changes, tmp_path):
    export_bundle(small_detector(PRESETS[0], **changes), tmp_path / "bundle")
    assert verify_bundle(tmp_path / "bundle").passed


@pytest.mark.slow
def test_the_papers_model_is_exported_and_proved_in_a_minute_and_3_gib(tmp_path):
    code = f"""
import time, detrkit
from detrkit.classes import ClassMap
from detrkit.config import update_config
from detrkit.detectors.load import make_detector
from detrkit.families.build import build_model
from detrkit.families.recipes import preset_config
config = update_config(preset_config("detr-r50"), {{"model.backbone_norm": "frozen"}})
detector = make_detector(build_model(config, ClassMap(("a", "b"), (1, 2))), device="cpu")
start = time.perf_counter()
detrkit.export(detector, {str(tmp_path / "bundle.zip")!r})
peak = open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]  # ru_maxrss begins at the parent's
print(time.perf_counter() - start, int(peak) / 2**20)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=500)
    assert ran.returncode == 0, ran.stderr[-2000:]
    seconds, gib = map(float, ran.stdout.split())
    assert gib < 3
    assert seconds < 60 * max(1, os.getloadavg()[0]), "of two idle cores"
