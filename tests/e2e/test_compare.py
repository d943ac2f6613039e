"""``detrkit compare`` by its command, with a run, other toolkits' detectors and a file of detections."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from detrkit.evaluation.coco import METRIC_NAMES
from tests.e2e.conftest import Trained, run_well
from tests.unit.detectors.tiny import pycocotools_numbers, save_transformers

SSD = "torchvision:ssdlite320_mobilenet_v3_large@random"


@pytest.fixture(scope="module")
def yolos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "yolos"
    save_transformers("yolos", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {"0": "person", "1": "car", "2": "dog"}
    config["label2id"] = {name: int(label) for label, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def some_images(source: Path, root: Path, count: int) -> Path:
    """A part of a data set, its images copied."""
    content = json.loads((source / "annotations" / "instances_val2017.json").read_text(encoding="utf-8"))
    content["images"] = content["images"][:count]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    for image in content["images"]:
        shutil.copy(source / "val2017" / image["file_name"], root / "val2017" / image["file_name"])
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content), encoding="utf-8")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("count", [16, None])
def test_every_kind_of_model_on_real_images_scores_what_pycocotools_says(
    count: int | None, yolos: Path, shared_data: Path, tmp_path: Path
):
    source = shared_data / "coco_mini"
    data = source if count is None else some_images(source, tmp_path / "data", count)
    annotations = data / "annotations" / "instances_val2017.json"
    truth = json.loads(annotations.read_text(encoding="utf-8"))["annotations"]
    some = [
        {key: entry[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5 + number % 7 / 20}
        for number, entry in enumerate(truth)
        if number % 3 and not entry["iscrowd"]
    ]
    (tmp_path / "some.json").write_text(json.dumps(some), encoding="utf-8")
    models = [str(tmp_path / "some.json"), SSD, f"hf:{yolos}"]
    options = ["--out", tmp_path / "out", "--resamples", "20", "--latency", "0", "--classes", "all", "--json"]
    content: Any = json.loads(run_well("compare", *models, "--data", data, *options))
    assert [model["kind"] for model in content["models"]] == ["results", "torchvision", "transformers"]
    files = [tmp_path / "some.json", *sorted((tmp_path / "out" / "detections").glob("[ht]*.json"), reverse=True)]
    for model, file in zip(content["models"], files, strict=True):
        numbers = [-1.0 if model[name] is None else model[name] for name in METRIC_NAMES]
        assert numbers == pycocotools_numbers(annotations, file), model["name"]
    assert content["models"][0]["AP"] > 0.3
    assert "does not know 77 of the 80 classes" in content["notes"][0]


def test_a_run_against_its_own_detections_and_the_files_of_a_comparison(
    tiny_run: Trained, tiny_data: Path, tmp_path: Path
):
    first = tmp_path / "first"
    run_well("eval", tiny_run.run, "--data", tiny_data, "--out", tmp_path / "eval")
    found = tmp_path / "eval" / "detections.json"
    said = run_well(
        "compare", tiny_run.run, found, "--data", tiny_data, "--out", first, "--resamples", "20", "--latency", "2"
    )
    assert "no difference beyond chance" in said
    assert said.rstrip().splitlines()[-1].startswith(f"Written to {first}: compare.html, compare.json")
    content = json.loads((first / "compare.json").read_text(encoding="utf-8"))
    run, file = content["models"]
    assert [run[name] for name in METRIC_NAMES] == [file[name] for name in METRIC_NAMES]
    assert run["latency"]["images"] == 2
    assert run["cost"]["parameters"] > 0
    again = run_well(
        "compare", tiny_run.run, found, "--data", tiny_data, "--out", first, "--resamples", "20", "--latency", "0"
    )
    assert "detections of an earlier comparison" in again
