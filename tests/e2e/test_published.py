"""The way of the published weights, with random numbers under their names: file, preset, data, numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.families.detr.export import write_published
from detrkit.families.detr.model import build_detr
from detrkit.families.detr.weights import coco_class_map
from detrkit.families.recipes import preset_config
from tests.e2e.conftest import run_well
from tests.e2e.test_commands import twelve
from tests.unit.detectors.tiny import pycocotools_numbers

IMAGES, PLANTED = 6, 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names and shapes of detr-r50's file, under a name that tells nothing."""
    torch.manual_seed(0)
    model = build_detr(preset_config("detr-r50").model.model_copy(update={"backbone_norm": "frozen"}), 91)
    with torch.no_grad():  # so that queries differ in place and class, as trained ones do
        model.query_embed.weight.mul_(8)
        model.class_embed.weight.mul_(6)
        model.class_embed.bias[-1] -= 3
    path = tmp_path_factory.mktemp("weights") / "some.pth"
    write_published(path, model.state_dict())
    return path


def write_subset(root: Path, source: Path, annotations: list[dict[str, Any]] | None = None) -> Path:
    """The first images of a COCO split, of several sizes, so that batches are padded."""
    content = json.loads((source / "annotations" / "instances_val2017.json").read_text(encoding="utf-8"))
    content["images"] = content["images"][:IMAGES]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = annotations or [item for item in content["annotations"] if item["image_id"] in ids]
    assert len({(image["width"], image["height"]) for image in content["images"]}) > 1
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").symlink_to(source / "val2017")
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def evaluate(checkpoint: Path, data: Path, out: Path, batch_size: int) -> tuple[dict[str, Any], list[Any]]:
    options = ("--batch-size", str(batch_size), "--device", "cpu")
    run_well("eval", checkpoint, "--as", "detr-r50", "--data", data, "--out", out, *options)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert twelve(metrics) == pycocotools_numbers(
        data / "annotations" / "instances_val2017.json", out / "detections.json"
    )
    return metrics, json.loads((out / "detections.json").read_text(encoding="utf-8"))


def plant(detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The surest detections of each image as its annotations."""
    chosen = []
    for image_id in dict.fromkeys(item["image_id"] for item in detections):
        own = [item for item in detections if item["image_id"] == image_id]
        chosen += sorted(own, key=lambda item: -item["score"])[:PLANTED]
    return [
        {
            "id": number,
            "image_id": item["image_id"],
            "category_id": item["category_id"],
            "bbox": item["bbox"],
            "area": item["bbox"][2] * item["bbox"][3],
            "iscrowd": 0,
        }
        for number, item in enumerate(chosen, start=1)
    ]


@pytest.mark.slow
def test_a_published_file_gives_pycocotools_numbers_at_any_batch_size(
    checkpoint: Path, shared_data: Path, tmp_path: Path
):
    source = shared_data / "coco_mini"
    real = write_subset(tmp_path / "real", source)
    _, alone = evaluate(checkpoint, real, tmp_path / "alone", batch_size=1)
    assert {item["category_id"] for item in alone} <= set(coco_class_map().category_ids)
    # What it finds alone is taken for the truth, so that AP is high and any change of a detection lowers it.
    planted = write_subset(tmp_path / "planted", source, plant(alone))
    together, found = evaluate(checkpoint, planted, tmp_path / "together", batch_size=2)
    assert len(found) == len(alone) == IMAGES * 100
    annotations = planted / "annotations" / "instances_val2017.json"
    one_by_one = pycocotools_numbers(annotations, tmp_path / "alone" / "detections.json")
    assert one_by_one[0] > 0.1  # far from nothing, which would show little; its own duplicates keep it from 1
    assert twelve(together) == pytest.approx(one_by_one, abs=2e-3)
