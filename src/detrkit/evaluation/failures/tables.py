"""Failures as files: tables for spreadsheets, and label issues for a labelling tool."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.evaluation.failures.entries import KINDS, MISSED, SIZES, ImageResult, sizes_of
from detrkit.evaluation.failures.find import Failures
from detrkit.evaluation.failures.label_issues import LabelIssue
from detrkit.files import atomic_file
from detrkit.visual.table import Value, write_csv
from detrkit.visual.text import encodable

_BOX = ("x", "y", "width", "height")
_IMAGE_HEAD = ("file_name", "image_id", "severity", "objects", "right", *KINDS, "f1", "mean_iou")
_FAILURE_HEAD = ("kind", "file_name", "image_id", "class", "other_class", "score", "iou", "size", "severity")
_ISSUE_HEAD = ("reason", "rank", "file_name", "image_id", "class", "proposed_class", "score", "iou")


def write_failures(failures: Failures, folder: str | Path) -> list[Path]:
    """Write ``images.csv``, ``failures.csv``, ``label_errors.csv`` and ``label_errors.json``; give their paths."""
    folder = Path(folder)
    boxes = [f"{side}_{name}" for side in ("found", "object") for name in _BOX]
    issue_boxes = [f"{side}_{name}" for side in ("label", "proposed") for name in _BOX]
    issue_head = [*_ISSUE_HEAD, *issue_boxes, "explanation"]
    issues = zip(issue_rows(failures), failures.label_issues, strict=True)
    with atomic_file(folder / "label_errors.json") as file:
        json.dump(label_issues_as_coco(failures), file, indent=1)
    return [
        write_csv(folder / "images.csv", _IMAGE_HEAD, image_rows(failures)),
        write_csv(folder / "failures.csv", [*_FAILURE_HEAD, *boxes], _failure_rows(failures)),
        write_csv(folder / "label_errors.csv", issue_head, (_whole_row(*pair) for pair in issues)),
        folder / "label_errors.json",
    ]


def image_rows(failures: Failures) -> list[list[Value]]:
    """List file name, id, severity, objects, right ones, failures by kind, F1 and mean IoU of every image."""
    return [
        [
            *_values(image, "file_name", "image_id", "severity", "objects", "right"),
            *image.wrong,
            *_values(image, "f1", "mean_iou"),
        ]
        for image in failures.images
    ]


def issue_rows(failures: Failures) -> list[list[Value]]:
    """List reason, rank, file name, image id, class, proposed class, score and IoU of every label issue."""
    names = (*failures.class_names, None)
    return [
        [
            *_values(issue, "reason", "rank", "file_name", "image_id"),
            *(names[-1 if number is None else number] for number in (issue.class_id, issue.proposed_class_id)),
            *_values(issue, "score", "iou"),
        ]
        for issue in failures.label_issues
    ]


def label_issues_as_coco(failures: Failures) -> dict[str, Any]:
    """Return label issues in COCO's format: their images, and one annotation each with a field ``suspect``.

    ``bbox`` and ``category_id`` are as labelled; of a missing label, they are what the model proposes. What it
    proposes for the others stands in ``suspect``.
    """
    truth = failures.matches.truth
    category_ids, names = truth.class_map.category_ids, truth.class_map.names
    # an annotation for each issue, as labelled or, where there is no label, as proposed
    rows = sorted({issue.image_row for issue in failures.label_issues})
    annotations = []
    for number, issue in enumerate(failures.label_issues, start=1):
        class_id = issue.proposed_class_id if issue.class_id is None else issue.class_id
        box = issue.proposed_box_xywh if issue.box_xywh is None else issue.box_xywh
        assert class_id is not None
        assert box is not None
        annotation = {
            "id": number,
            "image_id": issue.image_id,
            "category_id": category_ids[class_id],
            "bbox": _rounded_box(box),
            "area": float(box[2] * box[3] if issue.annotation is None else truth.area[issue.annotation]),
            "iscrowd": 0,
            "suspect": _judgement(issue, category_ids),
        }
        annotations.append(annotation)
    # with the images and categories that they need
    images = zip(rows, truth.image_ids[rows].tolist(), truth.sizes_hw[rows].tolist(), strict=True)
    return {
        "info": {"description": "Labels that are likely wrong, most suspect first; written by detrkit"},
        "images": [
            {"id": image_id, "file_name": encodable(failures.file_names[row]), "height": height, "width": width}
            for row, image_id, (height, width) in images
        ],
        "categories": [
            {"id": category_id, "name": encodable(name)}
            for category_id, name in zip(category_ids, names, strict=True)
        ],
        "annotations": annotations,
    }


def _judgement(issue: LabelIssue, category_ids: Sequence[int]) -> dict[str, Any]:
    proposed, names = issue.proposed_class_id, ("reason", "rank", "score", "iou")
    return {
        **dict(zip(names, _values(issue, *names), strict=True)),
        "proposed_category_id": None if proposed is None else category_ids[proposed],
        "proposed_bbox": None if issue.proposed_box_xywh is None else _rounded_box(issue.proposed_box_xywh),
        "explanation": encodable(issue.explanation),
    }


def _whole_row(row: list[Value], issue: LabelIssue) -> list[Value]:
    """Add what only the file has: both boxes and the explanation."""
    boxes = [[None] * 4 if box is None else _rounded_box(box) for box in (issue.box_xywh, issue.proposed_box_xywh)]
    return [*row, *boxes[0], *boxes[1], issue.explanation]


def _failure_rows(failures: Failures) -> zip[tuple[Value, ...]]:
    """Yield all failures, column by column: there may be half a million."""
    table, truth, found = failures.table, failures.matches.truth, failures.matches.found
    # classes of detection and object; a missed object's own comes first
    names = np.array([*truth.class_map.names, None], dtype=object)
    found_class = np.where(table.detections >= 0, np.append(found.class_ids, -1)[table.detections], -1)
    object_class = np.where(table.objects >= 0, np.append(truth.class_ids, -1)[table.objects], -1)
    missed = table.kinds == MISSED
    # boxes, and the size of the object where there is one
    found_boxes, object_boxes = _taken(found.boxes_xywh, table.detections), _taken(truth.boxes_xywh, table.objects)
    area = np.where(table.objects >= 0, _taken(truth.area, table.objects), found_boxes[:, 2] * found_boxes[:, 3])
    return zip(
        np.array(KINDS, dtype=object)[table.kinds].tolist(),
        np.array(failures.file_names, dtype=object)[table.image_rows].tolist(),
        truth.image_ids[table.image_rows].tolist(),
        names[np.where(missed, object_class, found_class)].tolist(),
        names[np.where(missed, found_class, object_class)].tolist(),
        _rounded_column(_taken(found.scores, table.detections), 4),
        _rounded_column(table.iou, 4),
        np.array(SIZES, dtype=object)[sizes_of(area)].tolist(),
        _rounded_column(table.severity, 4),
        *(_rounded_column(column, 2) for column in (*found_boxes.T, *object_boxes.T)),
        strict=True,
    )


def _taken(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Take values at some rows, NaN at -1."""
    taken = np.full((len(rows), *values.shape[1:]), np.nan)
    taken[rows >= 0] = values[rows[rows >= 0]]
    return taken


def _values(entry: ImageResult | LabelIssue, *names: str) -> list[Value]:
    """Return some of an entry's values, numbers rounded for a table."""
    values = [getattr(entry, name) for name in names]
    return [round(value, 4) if isinstance(value, float) else value for value in values]


def _rounded_box(box: Sequence[float]) -> list[float]:
    return [round(value, 2) for value in box]


def _rounded_column(values: np.ndarray, digits: int) -> list[Value]:
    """Round numbers for a table, None for NaN."""
    rounded = np.round(values, digits).astype(object)
    rounded[np.isnan(values)] = None
    plain: list[Value] = rounded.tolist()
    return plain
