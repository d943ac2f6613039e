"""Tables of an evaluation."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from detrkit.evaluation.coco import METRIC_NAMES, UNDEFINED, ClassMetrics, CocoMetrics
from detrkit.evaluation.report import CLASS_COLUMNS, class_table, metrics_table
from detrkit.visual.table import Table


def make_metrics(classes=3, objects=7):
    values = dict.fromkeys(METRIC_NAMES, 0.42) | {"APs": UNDEFINED}
    per_class = [ClassMetrics(f"class {i}", 10 * i, objects, 0.1 * i, 0.15 * i) for i in range(classes)]
    per_class[0] = ClassMetrics("rare", 99, 0, UNDEFINED, UNDEFINED)
    precision = np.linspace(1, 0, 101)[None, :, None] * np.ones((10, 1, classes))
    precision[:, :, 0] = UNDEFINED
    return CocoMetrics(values, tuple(per_class), 5, 7 * classes, 500, 100, ("unicorn",), precision)


def column(table: Table, name: str) -> list:
    place = [entry.name for entry in table.columns].index(name)
    return [row[place] for row in table.rows]


def by_name(table: Table, name: str) -> dict:
    return dict(zip((row[0] for row in table.rows), column(table, name), strict=True))


def test_the_twelve_numbers_are_there_and_none_where_undefined():
    table = metrics_table(make_metrics())
    assert column(table, "metric") == list(METRIC_NAMES)
    assert by_name(table, "%") | {"AP": 0.42, "APs": None} == by_name(table, "%")
    assert "5 images" in table.title
    assert "unicorn" in " ".join(table.notes)


def test_intervals_stand_beside_their_numbers(plain):
    value = plain.intervals.values["AP"]
    table = metrics_table(plain.metrics, plain.intervals)
    assert (by_name(table, "from")["AP"], by_name(table, "to")["AP"]) == (value.low, value.high)
    assert "95 %" in " ".join(table.notes)
    known = plain.intervals.per_class[0]["AP"]
    classes = class_table(plain)
    assert (by_name(classes, "from")["class 0"], by_name(classes, "to")["class 0"]) == (known.low, known.high)


def test_classes_are_listed_best_first_with_all_that_is_known_of_them(plain):
    table = class_table(plain)
    ap = column(table, "AP")
    assert ap == sorted(ap, reverse=True)
    for class_id, entry in enumerate(plain.per_class):
        (row,) = (row for row in table.rows if row[0] == entry.name)
        known = dict(zip((one.name for one in table.columns), row, strict=True))
        assert (known["id"], known["objects"], known["AP"]) == (str(entry.category_id), entry.objects, entry.AP)
        assert known["best F1"] == plain.curves.best_f1[class_id + 1]
        assert known["mean IoU"] == plain.overlaps.per_class[class_id]
        assert known["ECE"] == plain.calibration.per_class_ece[class_id]
    assert [entry.name for entry in table.only(*CLASS_COLUMNS).columns] == list(CLASS_COLUMNS[:-2])


@pytest.mark.slow
def test_matplotlib_is_loaded_where_a_picture_is_drawn_only():
    rooms = ("evaluation.report", "visual.overview", "visual.drawing", "curation.stats_report", "comparison.page")
    code = f"import sys, {', '.join(f'detrkit.{room}' for room in rooms)}; print('matplotlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
