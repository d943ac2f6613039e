"""Thresholds chosen for whatever detects, by call and by command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from detrkit.api.thresholds import choose_thresholds
from detrkit.classes import ClassMap
from detrkit.cli import app
from detrkit.threshold_file import read_thresholds

CLASSES = {1: "cat", 7: "dog", 9: "<b>gnu[/]"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two splits of 60 images of one cat or dog each, and results for both; the image files are empty."""
    random = np.random.default_rng(0)
    (tmp_path / "pets" / "annotations").mkdir(parents=True)
    for split in ("val2017", "test2017"):
        (tmp_path / "pets" / split).mkdir()
        content: dict[str, list[dict[str, Any]]] = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 200, "width": 200} for i in range(1, 61)],
            "annotations": [],
            "categories": [{"id": i, "name": name} for i, name in CLASSES.items()],
        }
        results = []
        for i in range(1, 61):
            (tmp_path / "pets" / split / f"{i}.png").touch()
            category, box = (1, 7)[i % 2], [10, 10, 50, 50]
            content["annotations"].append(
                {"id": i, "image_id": i, "category_id": category, "bbox": box, "area": 2500, "iscrowd": 0}
            )
            score = float(random.random())
            placed = box if random.random() < score else [120, 120, 50, 50]
            results.append({"image_id": i, "category_id": category, "bbox": placed, "score": score})
        (tmp_path / "pets" / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        (tmp_path / f"{split}.json").write_text(json.dumps(results))
    return tmp_path


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["thresholds", *map(str, words)])


def chosen(data: Path, **options: Any) -> Any:
    return choose_thresholds(data / "val2017.json", data / "pets", **options)


def test_thresholds_of_a_file_of_detections_look_at_no_image(data: Path):
    lines: list[str] = []
    choice = chosen(data, precision=0.8, out=data / "out.json", say=lines.append)
    thresholds = choice.thresholds
    assert [(entry.name, entry.category_id, entry.own) for entry in thresholds.classes] == [
        ("cat", 1, True),
        ("dog", 7, True),
        ("<b>gnu[/]", 9, False),
    ]
    assert (thresholds.data, thresholds.split, thresholds.images, thresholds.objects) == ("pets", "val", 60, 60)
    assert (thresholds.criterion, thresholds.wished) == ("precision", 0.8)
    for entry in thresholds.classes[:2]:
        assert entry.precision is not None
        assert entry.precision >= 0.8
    assert choice.check is not None
    assert choice.check.objects.tolist() == [30, 30, 0]
    assert choice.checked_on == "halves of val, each with thresholds of the other"
    assert "60 images" in lines[0]
    class_map = ClassMap(tuple(CLASSES.values()), tuple(CLASSES))
    assert read_thresholds(data / "out.json", class_map) == thresholds


def test_a_split_of_one_image_is_chosen_on_and_not_checked(data: Path):
    file = data / "pets" / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content.update(images=content["images"][:1], annotations=content["annotations"][:1])
    file.write_text(json.dumps(content))
    results = data / "val2017.json"
    results.write_text(json.dumps(json.loads(results.read_text())[:1]))
    choice = chosen(data)
    assert choice.check is None
    assert choice.checked_on.startswith("not checked: ")
    assert choice.to_dict()["check"] is None
    result = run(results, "--data", data / "pets", "--out", data / "one.json")
    assert result.exit_code == 0, result.output
    assert "not checked: thresholds cannot be checked on a split of one image" in result.output


def test_the_command_writes_the_file_and_says_where(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(data)
    result = run("val2017.json", "--data", "pets", "--recall", 0.3, "--calibrate")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "Written to thresholds.json"
    for expected in ("thresholds for recall 0.3", "cat", "<b>gnu[/]", "all ", "temperature"):
        assert expected in result.output
    assert "1 of 3 classes have few objects" in result.output
    assert json.loads(Path("thresholds.json").read_text())["criterion"] == "recall"


def test_json_is_nothing_but_json(data: Path):
    file = data / "sub" / "t.json"
    result = run(data / "val2017.json", "--data", data / "pets", "--out", file, "--json")
    content = json.loads(result.stdout)
    assert content["thresholds"] == json.loads(file.read_text())
    assert content["check"]["on"].startswith("halves of val")
    assert [entry["name"] for entry in content["check"]["classes"]] == list(CLASSES.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--f1", "--recall", 0.5], "--f1 goes with neither"),
        (["--precision", 1.5], "precision wished is 1.5"),
        (["--out", "pets"], "pets is a folder"),
    ],
)
def test_a_command_that_makes_no_sense_exits_with_2(
    words: Sequence[object], message: str, data: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(data)
    result = run("val2017.json", "--data", "pets", *words)
    assert result.exit_code == 2
    assert message in result.output
