"""Data sets in every layout through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detrkit.curation.synthetic import write_synthetic
from tests.e2e.conftest import records, run_here, run_well, train_arguments

TRAIN, VAL, SIDE = 4, 2, 32


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(
        tmp_path_factory.mktemp("shapes"), train_images=TRAIN, val_images=VAL, size=SIDE, seed=3
    )


def test_training_and_evaluation_read_yolo_and_voc(shapes: Path, tmp_path: Path) -> None:
    ap: dict[str, float] = {}
    for layout in ("yolo", "voc"):
        data = tmp_path / layout
        run_well("data", "convert", shapes, "--to", layout, "--out", data)
        run = tmp_path / f"run-{layout}"
        out = run_well(*train_arguments(data, run, 1, transforms__scales=[SIDE], transforms__eval_size=SIDE))
        assert f"{VAL} images" in out
        named = "data.yaml names train: images/train" if layout == "yolo" else "listed by ImageSets/Main/train.txt"
        assert named in out
        assert "the validation split is the training split" not in out
        ap[layout] = records(run, "eval")[-1]["AP"]
        metrics = json.loads(run_well("eval", run, "--data", data, "--json"))
        assert metrics["AP"] == ap[layout]
        assert metrics["images"] == VAL
    in_coco = json.loads(run_well("eval", tmp_path / "run-yolo", "--data", shapes, "--json"))
    assert in_coco["AP"] == pytest.approx(ap["yolo"], abs=1e-9)
    by_file = run_well("eval", tmp_path / "run-yolo", "--data", tmp_path / "yolo" / "data.yaml", "--json")
    assert json.loads(by_file)["AP"] == ap["yolo"]


def test_convert_says_what_it_did(shapes: Path, tmp_path: Path) -> None:
    out = run_well("data", "convert", shapes, "--to", "voc", "--out", tmp_path / "voc", "--split", "val")
    assert "val: 2 images" in out
    assert "COCO 2017: annotations/instances_val2017.json is val in COCO 2017 layout" in out
    assert f"Written as voc to {tmp_path / 'voc'}: 2 images and" in out
    result = json.loads(
        run_well("data", "convert", tmp_path / "voc", "--to", "coco", "--out", tmp_path / "coco", "--json")
    )
    assert result["format"] == "coco"
    assert result["splits"]["val"]["images"] == VAL
    assert result["splits"]["val"]["layout"] == "Pascal VOC"


def test_exit_codes(shapes: Path, tmp_path: Path) -> None:
    taken = run_here("data", "convert", shapes, "--to", "coco", "--out", shapes)
    assert (taken.exit_code, "is not empty" in taken.output) == (2, True)
    unknown = run_here("data", "convert", shapes, "--to", "csv", "--out", tmp_path / "a")
    assert (unknown.exit_code, "expected one of coco, yolo, voc" in unknown.output) == (2, True)
    layout = run_here("data", "convert", shapes, "--to", "voc", "--out", tmp_path / "a", "--layout", "xml")
    assert (layout.exit_code, "--layout is 'xml'" in layout.output) == (2, True)
    (tmp_path / "empty").mkdir()
    nothing = run_here("data", "convert", tmp_path / "empty", "--to", "voc", "--out", tmp_path / "a")
    assert (nothing.exit_code, "no data set found" in nothing.output) == (1, True)
    assert not (tmp_path / "a").exists()
