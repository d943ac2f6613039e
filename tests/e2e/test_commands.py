"""Evaluation, prediction and export from the command line, and what it says to those who err."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.config import read_config
from detrkit.evaluation.coco import METRIC_NAMES
from detrkit.families.build import read_weights
from detrkit.families.recipes import preset_config
from tests.e2e.conftest import (
    VAL_IMAGES,
    Trained,
    assert_equal,
    finish,
    records,
    run_here,
    run_well,
    start,
    train_arguments,
)
from tests.unit.detectors.tiny import pycocotools_numbers

NUM_QUERIES = preset_config("detr-tiny").model.num_queries


def twelve(metrics: dict[str, Any]) -> list[float]:
    return [-1.0 if metrics[name] is None else metrics[name] for name in METRIC_NAMES]


@pytest.mark.parametrize("name", ["last", "best"])
def test_eval_gives_the_numbers_of_pycocotools_and_of_training(
    name: str, tiny_run: Trained, tiny_data: Path, tmp_path: Path
):
    checkpoint = tiny_run.run / "checkpoints" / f"{name}.pt"
    run_well("eval", checkpoint, "--data", tiny_data, "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    annotations = tiny_data / "annotations" / "instances_val2017.json"
    assert twelve(metrics) == pycocotools_numbers(annotations, tmp_path / "detections.json")
    logged = records(tiny_run.run, "eval")
    of_it = logged[-1] if name == "last" else max(logged, key=lambda record: record["AP"])
    assert of_it["AR100"] > 0 or name == "last"  # zeros alone would show little
    assert twelve(metrics) == twelve(of_it)
    assert metrics["detections"] == VAL_IMAGES * NUM_QUERIES
    assert (tmp_path / "precision_recall.png").read_bytes().startswith(b"\x89PNG")


def test_eval_of_a_run_takes_its_best_checkpoint_and_loses_no_earlier_result(
    tiny_run: Trained, tiny_data: Path, copy_of: Callable[[Path], Path]
):
    run = copy_of(tiny_run.run)
    best = max(record["AP"] for record in records(run, "eval"))
    assert json.loads(run_well("eval", run, "--json"))["AP"] == best
    on_file = json.loads(
        run_well("eval", run, "--data", tiny_data / "annotations" / "instances_val2017.json", "--json")
    )
    assert on_file["AP"] == best
    run_well("eval", run, "--split", "train", "--batch-size", "24")
    images = [json.loads((run / name / "metrics.json").read_text())["images"] for name in ("eval", "eval-3")]
    assert images == [VAL_IMAGES, 24]


def test_classes_that_the_model_does_not_know_are_told(
    tiny_run: Trained, tiny_data: Path, copy_of: Callable[[Path], Path], tmp_path: Path
):
    data = copy_of(tiny_data)
    annotations = data / "annotations" / "instances_val2017.json"
    annotations.write_text(annotations.read_text().replace('"ring"', '"doughnut"'))
    out = run_well("eval", tiny_run.run, "--data", data, "--out", tmp_path)
    assert "does not know 1 of its" in out
    assert "(doughnut); their objects count as missed" in out
    assert "of the model not in the data set" in " ".join(out.split())


def test_predict_draws_and_writes_every_query_at_threshold_zero(
    tiny_run: Trained, tiny_data: Path, tmp_path: Path
):
    folder = tiny_data / "val2017"
    out = run_well("predict", tiny_run.run, folder, "--out", tmp_path, "--threshold", "0")
    assert f"{VAL_IMAGES * NUM_QUERIES} objects in {VAL_IMAGES} images" in out
    names = sorted(path.stem for path in folder.iterdir())
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == names
    with Image.open(tmp_path / f"{names[0]}.png") as drawn, Image.open(folder / f"{names[0]}.jpg") as image:
        scale = drawn.width // image.width  # small images are enlarged, so that labels can be read
        assert drawn.size == (scale * image.width, scale * image.height)
        assert np.any(np.asarray(drawn.reduce(scale)) != np.asarray(image))
    found = json.loads((tmp_path / "predictions.json").read_text())
    files = [entry["file_name"] for entry in found]
    assert {file: files.count(file) for file in files} == {
        str(folder / f"{name}.jpg"): NUM_QUERIES for name in names
    }
    assert all(1 <= entry["category_id"] <= 6 and 0 < entry["score"] < 1 for entry in found)


def test_predict_json_is_pure_and_broken_images_are_named_once(tiny_run: Trained, tmp_path: Path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (80, 50), "white").save(folder / "good.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    (folder / "notes.txt").write_text("not looked at")
    arguments = ["predict", str(tiny_run.run), str(folder), "gone.jpg", "--threshold", "0", "--json"]
    out, err = finish(start([*arguments, "--out", str(tmp_path / "out")]), 1)
    assert {entry["file_name"] for entry in json.loads(out)} == {str(folder / "good.png")}
    assert [line.split(": ")[0] for line in err.splitlines() if line.startswith("skipped")] == [
        f"skipped {folder / 'empty.png'}",
        f"skipped {folder / 'text.jpg'}",
        "skipped gone.jpg",
    ]
    assert "not read: 1 file of another kind (.txt)" in err


def test_commands_that_fail_leave_nothing(
    tiny_run: Trained, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for words in (["--data", "gone"], ["--data", tiny_data, "--set", "train.freeze=[no]"]):
        assert run_here("train", "--model", "detr-tiny", *words).exit_code == 2
    for more in ([], ["--json"], ["--out", "a/b"]):
        result = run_here("predict", tiny_run.run, "gone.jpg", *more)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "skipped gone.jpg" in result.stderr
    assert not [*tmp_path.iterdir()]
    # nor does an empty folder move the results of the next
    (tmp_path / "predictions").mkdir()
    run_well("predict", tiny_run.run, tiny_data / "val2017" / "000001.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]


def test_detections_of_one_entry_a_line_are_read_once_they_are_converted(tiny_data: Path, tmp_path: Path):
    entry = '{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}\n'
    file, made = tmp_path / "found.jsonl", tmp_path / "found.json"
    file.write_text(entry * 2)
    words = ("--data", tiny_data, "--resamples", "0", "--out", tmp_path / "out")
    refused = run_here("eval", file, *words)
    assert refused.exit_code == 2
    assert "jq -s . FILE.jsonl > FILE.json" in refused.stderr
    made.write_text(f"[{','.join(file.read_text().splitlines())}]")  # as jq does
    run_well("eval", made, *words)
    assert 'it is a text, which begins \'{"image_id"' in run_here("export", file, "--out", made).stderr


def test_option_without_effect_is_told(tiny_data: Path, tmp_path: Path):
    out = run_well(*train_arguments(tiny_data, tmp_path / "run", epochs=1, data__prefetch=4))
    assert "data.prefetch has no effect" in out


def test_default_folders_are_never_written_over(
    tiny_run: Trained, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    image = tiny_data / "val2017" / "000001.jpg"
    for _ in range(2):
        run_well("predict", tiny_run.run, image)
        run_well("eval", tiny_run.run / "checkpoints" / "last.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "eval-2", "predictions", "predictions-2"]


def test_exported_run_keeps_weights_and_classes(tiny_run: Trained, tmp_path: Path):
    file = tmp_path / "shapes.pth"
    run_well("export", tiny_run.run, "--format", "published", "--out", file)
    (weights, config), (original, own) = read_weights(file), read_weights(tiny_run.run)
    assert_equal(dict(weights.state), dict(original.state))
    assert (weights.class_map, config.model) == (original.class_map, own.model)
    # a file of an earlier version says nothing of its model
    torch.save({"model": torch.load(file, weights_only=True)["model"]}, file)
    unnamed = run_here("predict", file, "nothing.jpg", "--out", tmp_path / "out")
    assert (unnamed.exit_code, "name its preset: --as detr-tiny" in unnamed.stderr) == (1, True)
    assert_equal(dict(read_weights(file, "detr-tiny")[0].state), dict(original.state))
    refused = run_here("export", tiny_run.run, "--format", "hub", "--out", tmp_path / "hub")
    assert (refused.exit_code, "--format published" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train"], 2, "no data given"),
        (["train", "--data", "{data}", "--model", "detr-r5"], 2, "did you mean detr-r50?"),
        (["train", "--data", "{data}", "--config", "gone.yaml"], 2, "cannot read gone.yaml"),
        (["train", "--data", "gone"], 2, "gone: there is no such folder"),
        (["train", "--data", "{data}/val2017"], 1, "no data set found"),
        (["train", "--data", "{data}", "--run", "{run}"], 2, "go on with: detrkit resume"),
        (["train", "--data", "{data}", "--run", "{file}"], 2, "it is a file"),
        (["train", "--data", "{data}", "--model", "detr-tiny", "--init", "published"], 2, "no published weights"),
        (["train", "--data", "{data}", "--init", "gone.pth"], 2, "no file or folder at gone.pth"),
        (["resume", "{data}"], 2, "is not a run folder"),
        (["eval", "{run}", "--split", "test"], 1, "has no split 'test'; it has train"),
        (["eval", "{run}", "--out", "{file}"], 2, "cannot be used as a folder for results"),
        (["eval", "{run}", "--device", "gpu"], 2, "device is 'gpu'"),
        (["eval", "{data}"], 2, "is a folder without a model"),
        (["predict", "{file}", "a.jpg"], 1, "it is a text, which begins 'hello'"),
        (["eval", "{file}"], 2, "as a .json file"),
        (["eval", "detr-tiny", "--data", "{data}"], 2, "has no published weights; train it first"),
        (["predict", "{run}", "{data}", "--out", "{new}"], 1, "no image in this folder"),
        (["predict", "{run}", "{data}/val2017", "--out", "{file}"], 2, "cannot be used as a folder"),
        (
            ["export", "{run}", "--out", "{new}", "--format", "onnx"],
            2,
            "expected one of bundle, openvino, tensorrt, program, published, hub",
        ),
        (["export", "{run}", "--out", "{new}", "--format", "published"], 2, "should be a .pth file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_get_an_answer(
    arguments: list[str], code: int, message: str, tiny_run: Trained, tiny_data: Path, tmp_path: Path
):
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    places = {"data": tiny_data, "run": tiny_run.run, "file": file, "new": tmp_path / "new"}
    result = run_here(*(argument.format(**places) for argument in arguments))
    assert (result.exit_code, type(result.exception)) == (code, SystemExit)
    assert message in result.stderr
    assert result.stderr.startswith("error: ")


def test_real_and_defective_data_is_trained_on_or_refused_in_words(shared_data: Path, tmp_path: Path):
    bad = shared_data / "bad_inputs"
    same = {"data__val_split": "train"}
    for name, folder, settings, message in (
        ("cut", bad / "01_json_truncated", {"data__train_split": "val"}, "the file stops after byte 1769472"),
        ("lost", bad / "07_coco_missing_file_and_empty", same, "1 of 12 image files do not exist"),
        ("ids", bad / "10_coco_unknown_category_ids", {}, "that is not listed"),
        ("text", bad / "11_coco_string_image_id", {}, "it has test (gt_ignore_test.json)"),
        ("outside", bad / "05_coco_boxes_outside_image", same, "17 boxes that leave their image (clipped)"),
        ("strings", bad / "06_coco_exif_rotated_string_boxes", same, "or sizes with numbers written as text"),
        ("chess", shared_data / "chess_roboflow_coco", {}, "15 images, 105 objects"),
    ):
        result = run_here(*train_arguments(folder, tmp_path / name, epochs=1, **settings))
        assert message in result.output, name
        assert result.exit_code == (0 if name in ("outside", "strings", "chess") else 1), result.output
        assert result.exit_code == 0 or type(result.exception) is SystemExit


def test_pictures_of_a_narrow_range_are_read_alike_by_every_command(tiny_data: Path, tmp_path: Path):
    data, run = Path(shutil.copytree(tiny_data, tmp_path / "data")), tmp_path / "run"
    for file in data.rglob("*.jpg"):
        values = np.asarray(Image.open(file).convert("L")).astype(np.uint16)
        Image.fromarray(28000 + 4 * values).save(file, format="PNG")
    out = run_well(*train_arguments(data, run, epochs=1, data__pixel_range="data"))
    assert "gray levels are left" not in out
    low, high = read_config(run / "config.yaml").data.pixel_range
    assert (28000 <= low < 28400, 28600 < high <= 29020) == (True, True)
    run_well("eval", run, "--out", tmp_path / "eval")
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert twelve(metrics) == twelve(records(run, "eval")[-1])
    run_well("predict", run, data / "val2017", "--threshold", "0", "--out", tmp_path / "found")
    scores = [
        sorted(entry["score"] for entry in json.loads((tmp_path / name).read_text()))
        for name in ("eval/detections.json", "found/predictions.json")
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
    # the reports and drawings show what the model sees, not a black square
    with Image.open(tmp_path / "found" / "000001.png") as drawn:
        assert np.asarray(drawn).std() > 20


def test_what_no_number_can_show_is_said(tiny_run: Trained, tiny_data: Path, tmp_path: Path):
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    file = data / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    first = content["annotations"][0]
    content["annotations"] = [{**first, "id": 1 + number} for number in range(NUM_QUERIES + 1)]
    file.write_text(json.dumps(content))
    found = run_well("eval", tiny_run.run, "--data", data, "--out", tmp_path / "crowded")
    assert f"more objects than the model has queries, {NUM_QUERIES + 1} of {NUM_QUERIES}" in found
    file.write_text(json.dumps({**content, "annotations": []}))
    for verb in (["eval", tiny_run.run], ["compare", tiny_run.run, tiny_run.run, "--latency", "0"]):
        found = run_well(*verb, "--data", data, "--resamples", "10", "--out", tmp_path / str(verb[0]))
        assert "has no object to find: no AP can be measured" in found
        assert "-1.0" not in found
