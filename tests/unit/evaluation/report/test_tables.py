"""Tables, metrics.json and pictures."""

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from detrkit.evaluation.coco import METRIC_NAMES, UNDEFINED, ClassMetrics, CocoMetrics
from detrkit.evaluation.report import (
    class_table,
    errors_table,
    metrics_table,
    plot_precision_recall,
    write_metrics_json,
)


def make_metrics(classes=3, objects=7):
    values = dict.fromkeys(METRIC_NAMES, 0.42) | {"APs": UNDEFINED}
    per_class = [ClassMetrics(f"class {i}", 10 * i, objects, 0.1 * i, 0.15 * i) for i in range(classes)]
    per_class[0] = ClassMetrics("rare", 99, 0, UNDEFINED, UNDEFINED)
    precision = np.linspace(1, 0, 101)[None, :, None] * np.ones((10, 1, classes))
    precision[:, :, 0] = UNDEFINED
    return CocoMetrics(values, tuple(per_class), 5, 7 * classes, 500, 100, ("unicorn",), precision)


def rendered(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()


def test_table_shows_percent_and_a_dash_where_undefined():
    text = rendered(metrics_table(make_metrics()))
    lines = {line.split()[1]: line.split()[3] for line in text.splitlines() if line.startswith("│")}
    assert lines["AP"] == "42.0"
    assert lines["APs"] == "-"
    assert set(lines) == set(METRIC_NAMES)
    assert "unicorn" in text
    assert "5 images" in text


def test_class_table_lists_best_first_and_undefined_last():
    lines = [line for line in rendered(class_table(make_metrics())).splitlines() if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in lines] == ["class 2", "class 1", "rare"]
    assert lines[-1].split("│")[4].strip() == "-"


def test_metrics_json_has_the_numbers_at_its_top_and_null_where_undefined(tmp_path):
    write_metrics_json(tmp_path / "metrics.json", make_metrics())
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["AP"] == 0.42
    assert content["APs"] is None
    assert content["images"] == 5
    assert content["detections"] == 500
    assert content["per_class"][0] == {
        "name": "rare",
        "category_id": 99,
        "objects": 0,
        "AP": None,
        "AP50": None,
    }


@pytest.mark.parametrize("classes", [1, 3, 30])
def test_precision_recall_picture_is_drawn(classes, tmp_path):
    path = plot_precision_recall(make_metrics(classes), tmp_path / "new" / "pr.png")
    assert np.asarray(Image.open(path).convert("L")).std() > 5


def test_pyplot_and_its_global_state_are_not_used():
    code = "import sys, detrkit.evaluation.report; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_intervals_stand_beside_their_numbers(plain):
    value = plain.intervals.values["AP"]
    text = rendered(metrics_table(plain.metrics, plain.intervals))
    assert f"{100 * value.low:.1f} to {100 * value.high:.1f}" in text
    assert "95 % interval" in text
    known = plain.intervals.per_class[0]["AP"]
    assert f"{100 * known.low:.1f} to {100 * known.high:.1f}" in rendered(
        class_table(plain.metrics, plain.intervals)
    )


def test_names_are_not_read_as_markup_of_the_terminal():
    metrics = make_metrics()
    odd = ("[bold red]x[/]", "[/]", "esc\x1b[31m", "line\nbreak", "right\u202eto left")
    metrics = dataclasses.replace(
        metrics,
        per_class=tuple(ClassMetrics(name, i, 3, 0.5, 0.5) for i, name in enumerate(odd)),
        unmatched_classes=odd,
    )
    text = rendered(class_table(metrics)) + rendered(metrics_table(metrics))
    assert text.count("[bold red]x[/]") == 2
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "line break" in text


def test_errors_are_listed_dearest_first(plain):
    lines = [line.split("│") for line in rendered(errors_table(plain.errors)).splitlines() if line.startswith("│")]
    costs = [float(line[2]) for line in lines if line[2].strip()]
    assert costs == sorted(costs, reverse=True)
    assert {line[1].strip() for line in lines if line[2].strip()} == {
        "classification",
        "localization",
        "both",
        "duplicate",
        "background",
        "missed",
    }


@pytest.mark.parametrize("table", [class_table, metrics_table])
def test_tables_of_edge_cases_are_drawn(table, edge):
    assert "nan" not in rendered(table(edge.metrics, edge.intervals))
