"""Files that spreadsheets and labelling tools can open without harm."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest

from detrkit.classes import ClassMap
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.failures import KINDS, label_issues_as_coco, write_failures
from tests.unit.visual.test_table import HOSTILE

from .cases import failures_of, found_of, generated_truth, simulated_detector, truth_of, with_label_errors


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_all_files_hold_hostile_names_as_text(tmp_path):
    plain = generated_truth(0, images=40)
    truth = with_label_errors(plain, 0.1).truth
    names = tuple(HOSTILE[number] for number in (0, 8, 9, 10, 11, 12))
    truth = dataclasses.replace(truth, class_map=ClassMap(names, truth.class_map.category_ids))
    files = [HOSTILE[row % len(HOSTILE)] + str(row) for row in range(40)]
    failures = failures_of(truth, simulated_detector(plain), file_names=files)
    paths = write_failures(failures, tmp_path / "new folder")
    assert [path.name for path in paths] == ["images.csv", "failures.csv", "label_errors.csv", "label_errors.json"]
    for path in paths[:3]:
        rows = read(path)
        for row in rows:
            for name in ("file_name", "class", "other_class", "proposed_class", "explanation", "reason", "kind"):
                cell = row.get(name) or ""
                assert cell.lstrip()[:1] not in tuple("=+-@\uff1d"), (path.name, name, cell)
    assert len(read(paths[0])) == 40
    assert len(read(paths[1])) == len(failures.table)
    assert len(read(paths[2])) == len(failures.label_issues) > 5


def test_failures_csv_says_what_the_entries_say(tmp_path):
    failures = failures_of(generated_truth(1, images=60), simulated_detector(generated_truth(1, images=60)))
    write_failures(failures, tmp_path)
    rows = read(tmp_path / "failures.csv")
    names = failures.class_names
    assert {row["kind"] for row in rows} >= {"missed", "background", "classification"}
    for row, entry in zip(rows, failures.worst(len(failures.table)), strict=True):
        assert (row["kind"], row["file_name"], row["size"]) == (entry.kind, entry.file_name, entry.size)
        assert int(row["image_id"]) == entry.image_id
        assert row["class"] == names[entry.class_id]
        assert row["other_class"] == ("" if entry.other_class_id is None else names[entry.other_class_id])
        for cell, value in ((row["score"], entry.score), (row["iou"], entry.iou)):
            assert (cell == "") == (value is None)
            assert value is None or float(cell) == pytest.approx(value, abs=1e-4)
        for side, box in (("found", entry.found_xywh), ("object", entry.object_xywh)):
            cells = [row[f"{side}_{name}"] for name in ("x", "y", "width", "height")]
            assert (cells[0] == "") == (box is None)
            assert box is None or [float(cell) for cell in cells] == pytest.approx(box.tolist(), abs=0.01)


def test_images_csv_has_every_image_with_its_counts(tmp_path):
    failures = failures_of(truth_of((0, 0, (1.0, 1.0, 50.0, 50.0))), found_of((1, 0, 0.9, (1.0, 1.0, 50.0, 50.0))))
    write_failures(failures, tmp_path)
    rows = read(tmp_path / "images.csv")
    assert list(rows[0]) == ["file_name", "image_id", "severity", "objects", "right", *KINDS, "f1", "mean_iou"]
    assert [row["image_id"] for row in rows] == ["10", "7", "13"]
    counts = [rows[0][name] for name in ("objects", "right", "background", "missed", "f1", "mean_iou")]
    assert counts == ["0", "0", "1", "0", "0.0", ""]
    assert rows[2]["f1"] == ""


def test_label_issues_in_coco_format_keep_the_ids_of_the_data_set(tmp_path):
    failures = failures_of(*suspicious())
    content = label_issues_as_coco(failures)
    truth = failures.matches.truth
    assert [category["id"] for category in content["categories"]] == list(truth.class_map.category_ids)
    images = {image["id"]: image for image in content["images"]}
    assert set(images) == {issue.image_id for issue in failures.label_issues}
    assert {(image["height"], image["width"]) for image in images.values()} == {(480, 640)}
    assert len({annotation["id"] for annotation in content["annotations"]}) == len(content["annotations"])
    reasons = set()
    for annotation, issue in zip(content["annotations"], failures.label_issues, strict=True):
        judgement = annotation["suspect"]
        reasons.add(judgement["reason"])
        labelled = issue.class_id is not None
        class_id = issue.class_id if labelled else issue.proposed_class_id
        box = issue.box_xywh if labelled else issue.proposed_box_xywh
        assert annotation["category_id"] == truth.class_map.category_ids[class_id]
        assert annotation["bbox"] == pytest.approx(box, abs=0.01)
        assert annotation["image_id"] == issue.image_id
        assert judgement["rank"] == pytest.approx(issue.rank, abs=1e-4)
        if judgement["reason"] == "missing label":
            assert judgement["proposed_category_id"] == annotation["category_id"]
    assert reasons >= {"missing label", "wrong class", "badly placed box"}
    write_failures(failures, tmp_path)
    assert json.loads((tmp_path / "label_errors.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(content)
    )


def test_label_issues_in_coco_format_are_annotations_that_evaluation_reads(tmp_path):
    write_failures(failures_of(*suspicious()), tmp_path)
    evaluator = CocoEvaluator(tmp_path / "label_errors.json")
    assert len(evaluator.truth.class_ids) > 20
    assert np.isfinite(evaluator.truth.boxes_xywh).all()


def test_nothing_at_all_gives_files_with_heads_alone(tmp_path):
    write_failures(failures_of(truth_of(images=1), found_of()), tmp_path)
    assert read(tmp_path / "failures.csv") == read(tmp_path / "label_errors.csv") == []
    assert len(read(tmp_path / "images.csv")) == 1
    assert json.loads((tmp_path / "label_errors.json").read_text())["annotations"] == []


def suspicious():
    truth = generated_truth(2)
    return with_label_errors(truth).truth, simulated_detector(truth)
