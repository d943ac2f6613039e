"""``detrkit eval``: one command, and all that it leaves behind."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import jsonschema
import pytest

import detrkit
from detrkit.evaluation.coco import METRIC_NAMES
from detrkit.evaluation.report.metrics_file import metrics_content, metrics_schema
from tests.e2e.conftest import Trained, run_well

FILES = {
    ".detrkit-written",
    "report.html",
    "summary.md",
    "metrics.json",
    "detections.json",
    "images.csv",
    "failures.csv",
    "label_errors.csv",
    "label_errors.json",
    "precision_recall.png",
}
BAIT = '"><img src=x onerror=alert(1)>'
FORMULA = "=1+1 <script>alert(2)</script>"


@pytest.fixture(scope="module")
def evaluated(tiny_run: Trained, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an evaluation of the tiny run, and what the command printed."""
    folder = tmp_path_factory.mktemp("eval") / "all"
    options = ("--resamples", "50", "--latency", "3")
    return folder, run_well("eval", tiny_run.run, "--data", tiny_data, "--out", folder, *options)


def content_of(folder: Path) -> dict:
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    jsonschema.validate(content, metrics_schema())
    return content


def test_one_command_writes_every_file_and_says_where(evaluated, tiny_data):
    folder, out = evaluated
    assert {path.name for path in folder.iterdir()} == FILES
    assert f"Written to {folder}: report.html" in out
    content = content_of(folder)
    assert content["images"] == content["latency"]["images"] + 5 == 8
    assert content["intervals"]["resamples"] == 50
    assert content["model"]["kind"] == "detrkit"
    assert content["data"] == {"name": str(tiny_data), "split": "val", "seen_in_training": False}
    assert "Errors at IoU 0.50" in out
    with (folder / "images.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 8


def test_the_page_shows_pictures_and_asks_nobody_for_anything(evaluated):
    html = (evaluated[0] / "report.html").read_text(encoding="utf-8")
    assert html.count('src="data:image/jpeg;base64,') > 3
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(address.startswith(("data:image/", "#s")) for address in addresses)
    assert "default-src 'none'" in html


def test_the_files_of_detections_give_the_same_numbers_again(evaluated, tiny_data, tmp_path):
    folder, _ = evaluated
    out = run_well("eval", folder / "detections.json", "--data", tiny_data, "--out", tmp_path, "--resamples", "0")
    first, second = content_of(folder), content_of(tmp_path)
    assert [second[name] for name in METRIC_NAMES] == [first[name] for name in METRIC_NAMES]
    assert second["errors"] == first["errors"]
    assert second["latency"] is None
    assert second["model"]["kind"] == "results"
    assert second["intervals"] is None
    assert "interval" not in out


def test_hostile_names_and_missing_images_do_no_harm(evaluated, tiny_data, copy_of, tmp_path):
    data = copy_of(tiny_data)
    shutil.rmtree(data / "val2017")
    file = data / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    for number, category in enumerate(content["categories"]):
        category["name"] = f"{(BAIT, FORMULA)[number % 2]} {number}"
    for image in content["images"]:
        image["file_name"] = f"{FORMULA.replace('/', '-')} {image['file_name']}"
    file.write_text(json.dumps(content))
    run_well("eval", evaluated[0] / "detections.json", "--data", file, "--out", tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<img" not in html
    assert "<script>alert" not in html
    assert "&#34;&gt;&lt;img src=x onerror=alert(1)&gt; 0" in html
    assert "images could not be read" in html
    for name in ("images.csv", "failures.csv", "label_errors.csv"):
        with (tmp_path / "out" / name).open(encoding="utf-8", newline="") as table:
            assert not [cell for row in csv.reader(table) for cell in row if cell.startswith(("=", "+", "@"))]
    summary = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert "<img" not in summary
    assert "<script" not in summary
    assert content_of(tmp_path / "out")["per_class"][0]["name"] == f"{BAIT} 0"


def test_only_the_numbers_are_there_if_nothing_else_is_asked_for(tiny_run, tiny_data, tmp_path):
    options = ("--no-explain", "--resamples", "0", "--latency", "0")
    run_well("eval", tiny_run.run, "--data", tiny_data, "--out", tmp_path / "out", *options)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".detrkit-written",
        "report.html",
        "summary.md",
        "metrics.json",
        "detections.json",
        "precision_recall.png",
    }
    assert content_of(tmp_path / "out")["errors"] is None


def test_python_gives_the_same_as_the_command(evaluated, tiny_run, tiny_data):
    evaluation = detrkit.evaluate(tiny_run.run, tiny_data, resamples=50)
    content = content_of(evaluated[0])
    assert {name: evaluation[name] for name in METRIC_NAMES if content[name] is not None} == {
        name: content[name] for name in METRIC_NAMES if content[name] is not None
    }
    assert metrics_content(evaluation)["intervals"] == content["intervals"]
    assert evaluation.latency is None
