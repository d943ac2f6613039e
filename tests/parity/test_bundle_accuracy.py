"""AP of a bundle is AP of its model in torch, to four digits, by the one evaluator."""

from __future__ import annotations

import importlib
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.api.export import export_bundle
from detrkit.curation.synthetic import draw_scene
from detrkit.detectors.accuracy import AccuracyData
from detrkit.errors import BundleError, DataError, UsageError
from tests.support.exporting import CLASSES, PRESETS, REALTIME, small_detector

pytest.importorskip("onnxscript", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")


def write_found_set(folder, detector, images: int = 12):
    """A data set whose objects are about what a model finds, so that its AP is neither 0 nor 1."""
    random = np.random.default_rng(0)
    entries, annotations = [], []
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for number in range(images):
        size = int(random.integers(70, 200))
        scene = draw_scene(random, size)[0][: size - 20]
        name = f"{number:012d}.png"
        Image.fromarray(scene).save(folder / "val2017" / name)
        entries.append({"id": number, "file_name": name, "height": scene.shape[0], "width": scene.shape[1]})
        [found] = detector.predict_batch([torch.from_numpy(scene.copy()).permute(2, 0, 1)])
        for row in random.permutation(8)[:5].tolist():
            left, top, right, bottom = found.boxes_xyxy[row].astype(float).tolist()
            width, height = (right - left) * random.uniform(0.8, 1.2), (bottom - top) * random.uniform(0.8, 1.2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": CLASSES.category_ids[found.class_ids[row]],
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": number, "name": name} for name, number in zip(CLASSES.names, CLASSES.category_ids, strict=True)
    ]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("preset", [*PRESETS, *REALTIME])
def test_ap_is_torchs_to_four_digits_in_every_runtime(preset, tmp_path):
    detector = small_detector(preset)
    data = write_found_set(tmp_path / "found", detector)
    found = export_bundle(detector, tmp_path / "bundle.zip", accuracy=AccuracyData(data))
    accuracy = found.manifest.report.accuracy
    assert 0.1 < accuracy.torch_ap < 0.95
    assert f"{accuracy.ap:.4f}" == f"{accuracy.torch_ap:.4f}"
    assert accuracy.low < accuracy.ap
    assert (accuracy.images, accuracy.data, accuracy.split) == (12, "found", "val")
    assert "torch's" in "\n".join(found.lines())
    assert detrkit.evaluate(detector, data, explain=False, resamples=0)["AP"] == pytest.approx(accuracy.torch_ap)
    for runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
        again = detrkit.verify(found.path, runtime=runtime, data=data)
        assert again.passed, again.lines()
        assert f"{again.report.accuracy.ap:.4f}" == f"{accuracy.ap:.4f}"
        assert again.report.accuracy.sha256 == accuracy.sha256
    # the same pictures with other annotations are other data
    file = data / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"].pop()
    file.write_text(json.dumps(content))
    other = detrkit.verify(found.path, data=data)
    assert (other.verdict, other.report.accuracy.objects) == ("verified with warnings", accuracy.objects - 1)


@pytest.mark.slow
def test_int8_that_costs_ap_is_refused_with_what_was_measured(tmp_path, monkeypatch):
    module = importlib.import_module("detrkit.export.write")  # detrkit.export itself is the verb
    monkeypatch.setattr(module, "measure_cold_start", lambda *_: pytest.fail("of a bundle that is not to be kept"))
    # scales of a black picture: what is brighter is cut off, which no test double has to pretend
    detector = small_detector(PRESETS[0])
    data = write_found_set(tmp_path / "found", detector)
    (data / "train2017").mkdir()
    Image.new("RGB", (90, 70)).save(data / "train2017" / "black.png")
    content = json.loads((data / "annotations" / "instances_val2017.json").read_text())
    content["images"] = [{"id": 0, "file_name": "black.png", "height": 70, "width": 90}]
    content["annotations"] = [{**content["annotations"][0], "image_id": 0, "bbox": [1, 1, 9, 9]}]
    (data / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="INT8 does not pay") as refused:
        detrkit.export(detector, tmp_path / "int8.zip", data=data, int8=True)
    [loss] = re.findall(r"it costs ([0-9.]+) AP points", str(refused.value))
    assert float(loss) > 1
    assert f"({-float(loss):+.2f} points" in str(refused.value)
    assert not (tmp_path / "int8.zip").exists()


def test_what_ap_cannot_be_measured_on_is_told_before_the_work(tmp_path, monkeypatch):
    module = importlib.import_module("detrkit.export.write")  # detrkit.export itself is the verb
    monkeypatch.setattr(module, "write_graphs", lambda *_, **__: pytest.fail("it was exported"))
    detector = small_detector(PRESETS[0])
    data = write_found_set(tmp_path / "found", detector, images=1)
    file = data / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    for change, message in (
        ({"annotations": []}, "no object"),
        ({"categories": [{"id": 17, "name": "x"}]}, "class"),
    ):
        file.write_text(json.dumps(content | change))
        with pytest.raises(DataError, match=message):
            detrkit.export(detector, tmp_path / "bundle.zip", data=data)
    with pytest.raises(UsageError, match="nowhere"):
        detrkit.export(detector, tmp_path / "bundle.zip", data=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="raw"):
        detrkit.export(detector, tmp_path / "bundle.zip", data=data, raw=True)
