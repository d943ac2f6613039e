"""Tables, metrics.json and pictures."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from detrkit.errors import DataError
from detrkit.evaluation.coco import METRIC_NAMES, UNDEFINED, ClassMetrics, CocoMetrics
from detrkit.evaluation.report import (
    class_table,
    metrics_table,
    plot_curves,
    plot_precision_recall,
    read_metrics_log,
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


def records(steps=100, epochs=5):
    log = [{"kind": "step", "step": i, "epoch": 0, "loss": 9.0 / (i + 1), "lr": 1e-4} for i in range(steps)]
    return log + [{"kind": "eval", "epoch": i, "AP": 0.1 * i, "AP50": 0.15 * i} for i in range(epochs)]


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (1, 1), (100, 0), (0, 5), (400, 80)])
def test_curves_are_drawn_from_any_part_of_a_run(steps, epochs, tmp_path):
    path = plot_curves(records(steps, epochs), tmp_path / "curves.png")
    assert np.asarray(Image.open(path)).shape[1] > 1000


def test_curves_pass_over_undefined_and_foreign_records(tmp_path):
    log = [*records(), {"kind": "eval", "epoch": 5, "AP": None}, {"kind": "eval", "epoch": 6, "AP": -1}]
    log += [{"kind": "step", "step": 101, "loss": float("nan")}, {"kind": "note"}, {}]
    plot_curves(log, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_log_without_its_cut_off_last_line_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step"}\n\n{"kind": "eval"}\n{"ki')
    assert [record["kind"] for record in read_metrics_log(path)] == ["step", "eval"]
    path.write_text('{"ki\n{"kind": "eval"}\n')
    with pytest.raises(DataError, match="line 1"):
        read_metrics_log(path)
    path.write_text("[]\n")
    with pytest.raises(DataError, match="expected a JSON object"):
        read_metrics_log(path)
    with pytest.raises(DataError, match="cannot read"):
        read_metrics_log(tmp_path / "none.jsonl")


def test_pyplot_and_its_global_state_are_not_used():
    code = "import sys, detrkit.evaluation.report; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
