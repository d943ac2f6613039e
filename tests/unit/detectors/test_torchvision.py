"""torchvision's detectors, held against the same models run as their documentation says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights

from detrkit import download
from detrkit.detectors.find import find_target
from detrkit.detectors.on_split import detect_on_split
from detrkit.errors import DownloadError, UsageError, WeightsError
from tests.unit.detectors.splits import split_of, write_split
from tests.unit.detectors.tiny import Found, check_parity, torchvision_state

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
SSD = "ssdlite320_mobilenet_v3_large"
NAMES = SSDLite320_MobileNet_V3_Large_Weights.DEFAULT.meta["categories"]
COCO_IDS = {label: label for label, name in enumerate(NAMES) if name not in ("__background__", "N/A")}
CATEGORIES = {label: NAMES[label] for label in COCO_IDS}


def saved(tmp_path: Path, name: str, **sizes: Any) -> Path:
    path = tmp_path / f"{name}.pth"
    torch.save(torchvision_state(name, **sizes), path)
    return path


def as_documented(name: str, weights: Path) -> Any:
    """How https://docs.pytorch.org/vision/stable/models.html says to detect."""
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    prepare = torchvision.models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]

    def run(path: Path) -> Found:
        with torch.no_grad():
            found: Found = network([prepare(Image.open(path).convert("RGB"))])[0]
        return found

    return run


def check(name: str, tmp_path: Path, every: int) -> None:
    weights = saved(tmp_path, name)
    file = write_split(tmp_path / "data", [(120, 200), (160, 90), (64, 64)], categories=CATEGORIES)
    run = as_documented(name, weights)
    assert check_parity(f"torchvision:{name}@{weights}", run, COCO_IDS, file, every).unmatched_classes == ()


@pytest.mark.parametrize(("name", "every"), [(SSD, 40), (SMALL, 9)])
def test_detections_and_all_numbers_are_those_of_the_model_run_as_documented(
    name: str, every: int, tmp_path: Path
):
    check(name, tmp_path, every)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fcos_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "retinanet_resnet50_fpn_v2",
        "maskrcnn_resnet50_fpn",
        "ssd300_vgg16",
    ],
)
def test_the_same_with_the_large_ones(name: str, tmp_path: Path):
    check(name, tmp_path, 9)


def test_a_batch_finds_what_single_images_do(tmp_path: Path):
    write_split(tmp_path / "data", [(96, 128), (128, 96), (96, 128), (96, 128)], categories=CATEGORIES)
    split = split_of(tmp_path / "data")
    target = find_target(f"torchvision:{SMALL}@{saved(tmp_path, SMALL)}", device="cpu")
    progress: list[int] = []
    alone = dict(detect_on_split(target, split, batch_size=1))
    together = dict(detect_on_split(target, split, batch_size=4, progress=progress.append))
    assert progress[-1] == 4
    assert alone.keys() == together.keys() == {1, 2, 3, 4}
    for image_id, found in alone.items():
        assert len(found.scores) > 3
        np.testing.assert_allclose(found.scores, together[image_id].scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes_xyxy, together[image_id].boxes_xyxy, atol=1e-2)
        assert (np.diff(found.scores) <= 0).all()


def test_classes_of_a_file_come_from_beside_it(tmp_path: Path):
    path = saved(tmp_path, SMALL, num_classes=3)
    with pytest.raises(UsageError, match=r"has 3 labels with the background.*classes.json"):
        find_target(f"torchvision:{SMALL}@{path}", device="cpu")
    beside = {"names": ["cat", "dog"], "category_ids": [1, 7], "slots": [2, 1], "num_slots": 3}
    path.with_suffix(".classes.json").write_text(json.dumps(beside), encoding="utf-8")
    target = find_target(f"torchvision:{SMALL}@{path}", device="cpu")
    assert target.class_map.names == ("dog", "cat")  # by label
    beside["num_slots"] = 4
    path.with_suffix(".classes.json").write_text(json.dumps(beside), encoding="utf-8")
    with pytest.raises(WeightsError, match="with 4 labels"):
        find_target(f"torchvision:{SMALL}@{path}", device="cpu")


@pytest.mark.parametrize(
    ("name", "num_classes"), [(SSD, 5), ("retinanet_resnet50_fpn", 4), ("fcos_resnet50_fpn", 6)]
)
def test_the_number_of_labels_is_read_from_the_head(name: str, num_classes: int, tmp_path: Path):
    path = saved(tmp_path, name, num_classes=num_classes)
    with pytest.raises(UsageError, match=f"has {num_classes} labels"):
        find_target(f"torchvision:{name}@{path}", device="cpu")


def test_other_files_and_names_are_refused(tmp_path: Path):
    evil = tmp_path / "evil.pth"
    torch.save({"model": Path("x")}, evil)
    for source, error, message in (
        (f"{SMALL}@{saved(tmp_path, SSD)}", WeightsError, "does not fit"),
        (f"{SSD}@{evil}", WeightsError, "cannot be read as tensors alone"),
        ("fasterrcnn", UsageError, "no detector 'fasterrcnn'; it has: fasterrcnn_mobilenet"),
        (f"{SSD}@{tmp_path / 'none.pth'}", UsageError, "no weights file at"),
    ):
        with pytest.raises(error, match=message):
            find_target(f"torchvision:{source}", device="cpu")


def test_published_weights_are_taken_from_the_cache_of_torch_or_it_is_said_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def offline(*_: Any, **__: Any) -> None:
        raise DownloadError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(download, "download", offline)
    with pytest.raises(WeightsError, match=r"no route.*@FILE.*@random"):
        find_target(f"torchvision:{SSD}")
    state = torchvision_state(SSD)
    name = Path(torchvision.models.get_model_weights(SSD).DEFAULT.url).name  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "hub" / "checkpoints" / name)
    network = find_target(f"torchvision:{SSD}").stages.network
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())
