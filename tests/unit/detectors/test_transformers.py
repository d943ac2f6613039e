"""Object detection models of transformers, held against the same models run as their documentation says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detrkit.detectors.find import find_target
from detrkit.detectors.on_split import detect_on_split
from detrkit.errors import UsageError, WeightsError
from tests.unit.detectors.splits import split_of, write_split
from tests.unit.detectors.tiny import KINDS, LABELS, check_parity, run_transformers, save_transformers

SIZES = [(64, 96), (80, 56), (64, 96), (120, 120)]
CATEGORIES = {1: "cat", 7: "dog"}
BY_LABEL = {0: 1, 2: 7}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        save_transformers(kind, root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_detections_and_all_numbers_are_those_of_the_model_run_as_documented(
    kind: str, folders: dict[str, Path], tmp_path: Path
):
    file = write_split(tmp_path, SIZES, categories=CATEGORIES)
    folder = folders[kind]
    metrics = check_parity(f"hf:{folder}", lambda path: run_transformers(folder, path), BY_LABEL, file, 3)
    assert metrics.unmatched_classes == ("bird",)
    assert find_target(f"hf:{folder}", device="cpu").class_map.names == tuple(LABELS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_finds_what_single_images_do(kind: str, folders: dict[str, Path], tmp_path: Path):
    write_split(tmp_path, SIZES, categories=CATEGORIES)
    split, target = split_of(tmp_path), find_target(f"hf:{folders[kind]}", device="cpu")
    alone = dict(detect_on_split(target, split, batch_size=1))
    together = dict(detect_on_split(target, split, batch_size=4))
    assert alone.keys() == together.keys()
    for image_id, found in alone.items():
        np.testing.assert_allclose(np.sort(found.scores), np.sort(together[image_id].scores), atol=1e-4)
        assert (np.diff(found.scores) <= 0).all()


def test_a_folder_that_detrkit_cannot_load_is_run_by_transformers_and_this_is_said(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
):
    target = find_target(folders["yolos"], device="cpu")
    assert target.kind == "transformers"
    assert "transformers runs it, as hf:" in caplog.text


def test_missing_tensors_are_an_error_since_they_would_be_random(folders: dict[str, Path], tmp_path: Path):
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folders["yolos"] / name).read_bytes())
    state = load_file(folders["yolos"] / "model.safetensors")
    dropped = next(key for key in state if "bbox_predictor" in key)
    save_file({k: v for k, v in state.items() if k != dropped}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=f"lacks 1 tensors of a yolos, such as {dropped}"):
        find_target(f"hf:{tmp_path}", device="cpu")


def test_a_model_of_another_task_and_no_model_are_refused(tmp_path: Path):
    with pytest.raises(WeightsError, match="transformers cannot open"):
        find_target(f"hf:{tmp_path}", device="cpu")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(UsageError, match="is a bert of transformers, which is no object detection model"):
        find_target(f"hf:{tmp_path}", device="cpu")


def test_without_transformers_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UsageError, match="pip install transformers"):
        find_target("hf:someone/something", device="cpu")
