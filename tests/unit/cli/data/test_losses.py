"""What the commands say, and end with, where reading loses objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from detrkit.cli import app
from tests.unit.data.factory import voc_xml, write_noise

GOOD, EMPTY = [2, 2, 20, 20], [2, 2, 0, 20]
CLASSES = ("cat", "dog")


def run(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def write(root: Path, form: str, boxes: list[tuple[str, list[int]]], *, lost: int = 0) -> Path:
    """A train and a val split of four images each, one box an image; of the first images there is no file."""
    for split in ("train", "val"):
        names = [f"{split}{number}" for number in range(len(boxes))]
        for name in names[lost if split == "train" else 0 :]:
            folder = {"coco": root / split, "yolo": root / "images" / split, "voc": root / "JPEGImages"}[form]
            folder.mkdir(parents=True, exist_ok=True)
            write_noise(folder / f"{name}.png", 40, 60)
        of_split = boxes if split == "train" else [(name, GOOD) for name, _ in boxes]
        if form == "coco":
            entries = [
                {"id": row + 1, "image_id": row + 1, "category_id": CLASSES.index(name) + 1, "bbox": box}
                for row, (name, box) in enumerate(of_split)
            ]
            images: list[dict[str, Any]] = [
                {"id": row + 1, "file_name": f"{name}.png", "height": 40, "width": 60}
                for row, name in enumerate(names)
            ]
            categories = [{"id": row + 1, "name": name} for row, name in enumerate(CLASSES)]
            content = {"images": images, "annotations": entries, "categories": categories}
            (root / f"{split}.json").write_text(json.dumps(content))
        elif form == "yolo":
            (root / "labels" / split).mkdir(parents=True)
            for name, (label, (x, y, width, height)) in zip(names, of_split, strict=True):
                numbers = (x + width / 2) / 60, (y + height / 2) / 40, width / 60, height / 40
                line = " ".join(map(str, (CLASSES.index(label), *numbers)))
                (root / "labels" / split / f"{name}.txt").write_text(line)
            (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {list(CLASSES)}\n")
        else:
            (root / "Annotations").mkdir(parents=True, exist_ok=True)
            lists = root / "ImageSets" / "Main"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{split}.txt").write_text("\n".join(names))
            for name, (label, (x, y, width, height)) in zip(names, of_split, strict=True):
                text = voc_xml(f"{name}.png", [(label, x, y, x + width, y + height)])
                (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


LOSSES: dict[str, tuple[list[tuple[str, list[int]]], int, str]] = {
    "most objects": ([("cat", GOOD), ("dog", GOOD), *[("cat", EMPTY)] * 3], 0, "3 of 5 objects are lost"),
    "all of a class": ([*[("cat", GOOD)] * 3, ("dog", EMPTY)], 0, "no object is left of 1 class: dog"),
    "most images": ([("cat", GOOD)] * 5 + [("dog", GOOD)], 4, "4 of 6 objects are lost"),
}


@pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
@pytest.mark.parametrize("case", LOSSES)
def test_copies_and_trainings_without_most_objects_end_with_an_error(form: str, case: str, tmp_path: Path) -> None:
    boxes, lost, reason = LOSSES[case]
    data = write(tmp_path / "data", form, boxes, lost=lost)
    if form == "yolo" and lost:  # a folder of images has lost none of them
        reason = "label files without an image"
    result = run("data", "convert", data, "--to", form, "--out", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert reason in result.output
    assert "not fit for training" in result.output
    assert (tmp_path / "out").is_dir()
    result = run("train", "--model", "detr-tiny", "--data", data, "--run", tmp_path / "run", "--init", "none")
    assert result.exit_code == 1
    assert reason in result.output
    assert "--set data.on_lost_objects=warn" in result.output
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert run("data", "check", data, "--no-duplicates", "--fix", tmp_path / "fixed").exit_code == 1


@pytest.mark.parametrize(
    "form", ["coco", *(pytest.param(form, marks=pytest.mark.slow) for form in ("yolo", "voc"))]
)
def test_where_no_annotation_can_be_used_only_a_training_that_may_goes_on(form: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data", form, [("cat", EMPTY), ("dog", EMPTY)])
    tiny = ["--model", "detr-tiny", "--init", "none", "--epochs", "1", "--set", "transforms.eval_size=64"]
    words = ["train", "--data", data, "--run", tmp_path / "run", *tiny, "--set", "transforms.max_size=64"]
    refused = run(*words)
    assert refused.exit_code == 1
    assert "none of its 2 annotations can be used" in refused.output
    assert "--set data.on_lost_objects=warn" in refused.output
    assert run("data", "convert", data, "--to", "coco", "--out", tmp_path / "out").exit_code == 1
    taken = run(*words, "--set", "data.on_lost_objects=warn")
    assert taken.exit_code == 0, taken.output
    assert "all of 2 objects are lost" in taken.output


def test_json_of_every_verb_that_reads_has_the_account(tmp_path: Path) -> None:
    boxes = [("cat", GOOD), ("dog", GOOD), ("cat", EMPTY), ("dog", GOOD)]
    data = write(tmp_path / "data", "coco", boxes)
    verbs = {
        "stats": ["stats", data, "--split", "train"],
        "sample": ["sample", data, "--split", "train", "--count", "3", "--out", tmp_path / "sample"],
        "split": ["split", data, "--split", "train", "--no-groups", "--out", tmp_path / "split"],
        "cache": ["cache", data, "--out", tmp_path / "cache"],
    }
    for verb, words in verbs.items():
        result = run("data", *words, "--json")
        assert result.exit_code == 0, (verb, result.output)
        reading = json.loads(result.stdout)["reading"]
        assert list(reading) == ["train"], verb
        ledger = reading["train"]["ledger"]
        assert (ledger["objects_found"], ledger["objects_read"]) == (4, 3), verb
        assert ledger["objects_left_out"] == {"box_empty": 1}, verb
        assert "left out: 1 of 4 objects" in reading["train"]["findings"][-1], verb
