"""What a source is taken for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import detrkit
from detrkit.config import Config, update_config
from detrkit.detectors.detector import Detector
from detrkit.detectors.find import find_target
from detrkit.detectors.load import load_detector
from detrkit.detectors.on_split import bind_target, collect
from detrkit.errors import UsageError, WeightsError
from detrkit.families.detr.export import write_published
from tests.unit.detectors.splits import split_of, write_split
from tests.unit.families.conftest import build, small_config


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published layout."""
    path = tmp_path_factory.mktemp("weights") / "detr-r50-e632da11.pth"
    config = update_config(Config(), {"model": small_config().model_dump()})
    write_published(path, build(config.model).state_dict(), config)
    return path


def test_a_file_of_weights_is_one_of_detrkits_models_and_load_gives_the_same(weights: Path, tmp_path: Path):
    write_split(tmp_path, [(16, 64)], categories={1: "person"})  # a narrow one stays small at 800 x 1333
    target = find_target(weights, device="cpu")
    assert isinstance(target, Detector)
    assert (target.kind, target.name) == ("detrkit", str(weights))
    split = split_of(tmp_path)
    assert bind_target(target, split) is target
    own = collect(detrkit.load(weights, device="cpu"), split).packed()
    for image_id, found in collect(target, split).packed().items():
        for column, other in zip(found[:3], own[image_id][:3], strict=True):
            np.testing.assert_array_equal(column, other)
    assert load_detector(weights, device="cpu").class_map == target.class_map


def test_a_damaged_file_of_weights_is_not_given_to_transformers(tmp_path: Path):
    path = tmp_path / "broken.pth"
    path.write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=r"broken\.pth"):
        find_target(path)


def test_names_of_other_toolkits_detectors_get_advice():
    for source, preset, message in (
        ("torchvision:ssd300_vgg16@random", "detr-r50", "is not one of detrkit's models"),
        ("found.json", "detr-r50", "is not one of detrkit's models"),
        ("ssd300_vgg16", None, "say torchvision:ssd300_vgg16"),
    ):
        with pytest.raises(UsageError, match=message):
            find_target(source, preset)
