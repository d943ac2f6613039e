"""Failures as files: tables for spreadsheets, and suspect labels for a labelling tool."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.evaluation.failures.entries import KINDS, MISSED, SIZES, sizes_of
from detrkit.evaluation.failures.find import Failures
from detrkit.evaluation.failures.label_issues import Suspect
from detrkit.files import atomic_file
from detrkit.visual.table import Value, write_csv
from detrkit.visual.text import encodable


def write_failures(failures: Failures, folder: str | Path) -> list[Path]:
    """Write ``images.csv``, ``failures.csv``, ``label_errors.csv`` and ``label_errors.json``; gives their paths.

    Text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    folder = Path(folder)
    return [
        write_csv(folder / "images.csv", _IMAGE_HEAD, _image_rows(failures)),
        write_csv(folder / "failures.csv", _FAILURE_HEAD, _failure_rows(failures)),
        write_csv(folder / "label_errors.csv", _SUSPECT_HEAD, _suspect_rows(failures)),
        _write_json(folder / "label_errors.json", suspects_as_coco(failures)),
    ]


def suspects_as_coco(failures: Failures) -> dict[str, Any]:
    """Suspect labels in COCO's format: the images they are in, and one annotation each with a field ``suspect``.

    ``bbox`` and ``category_id`` are as labelled; of a missing label, they are what the model proposes. What it
    proposes for the others stands in ``suspect``.
    """
    truth = failures.matches.truth
    category_ids, names = truth.class_map.category_ids, truth.class_map.names
    rows = sorted({suspect.image_row for suspect in failures.suspects})
    annotations = []
    for number, suspect in enumerate(failures.suspects, start=1):
        class_id = suspect.proposed_class_id if suspect.class_id is None else suspect.class_id
        box = suspect.proposed_box_xywh if suspect.box_xywh is None else suspect.box_xywh
        assert class_id is not None
        assert box is not None
        annotation = suspect.annotation
        annotations.append(
            {
                "id": number,
                "image_id": suspect.image_id,
                "category_id": category_ids[class_id],
                "bbox": [round(value, 2) for value in box],
                "area": float(box[2] * box[3] if annotation is None else truth.area[annotation]),
                "iscrowd": 0,
                "suspect": _judgement(suspect, category_ids),
            }
        )
    return {
        "info": {"description": "Labels that are likely wrong, most suspect first; written by detrkit"},
        "images": [
            {
                "id": int(truth.image_ids[row]),
                "file_name": encodable(failures.file_names[row]),
                "height": int(truth.sizes_hw[row, 0]),
                "width": int(truth.sizes_hw[row, 1]),
            }
            for row in rows
        ],
        "categories": [
            {"id": category_id, "name": encodable(name)}
            for category_id, name in zip(category_ids, names, strict=True)
        ],
        "annotations": annotations,
    }


def _judgement(suspect: Suspect, category_ids: Sequence[int]) -> dict[str, Any]:
    proposed = suspect.proposed_class_id
    box = suspect.proposed_box_xywh
    return {
        "reason": suspect.reason,
        "rank": round(suspect.rank, 4),
        "score": None if suspect.score is None else round(suspect.score, 4),
        "iou": None if suspect.iou is None else round(suspect.iou, 4),
        "proposed_category_id": None if proposed is None else category_ids[proposed],
        "proposed_bbox": None if box is None else [round(value, 2) for value in box],
        "explanation": encodable(suspect.explanation),
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> Path:
    with atomic_file(path) as file:
        json.dump(content, file, indent=1)
    return path


_IMAGE_HEAD = ("file_name", "image_id", "severity", "objects", "right", *KINDS, "f1", "mean_iou")


def _image_rows(failures: Failures) -> Iterator[list[Value]]:
    for image in failures.images:
        yield [
            image.file_name,
            image.image_id,
            round(image.severity, 4),
            image.objects,
            image.right,
            *image.wrong,
            _rounded(image.f1),
            _rounded(image.mean_iou),
        ]


_BOX = ("x", "y", "width", "height")
_FAILURE_HEAD = (
    "kind",
    "file_name",
    "image_id",
    "class",
    "other_class",
    "score",
    "iou",
    "size",
    "severity",
    *(f"found_{name}" for name in _BOX),
    *(f"object_{name}" for name in _BOX),
)


def _failure_rows(failures: Failures) -> Iterator[list[Value]]:
    """All failures, column by column: there may be half a million."""
    table, truth, found = failures.table, failures.matches.truth, failures.matches.found
    names = np.array([*truth.class_map.names, None], dtype=object)
    files = np.array(failures.file_names, dtype=object)
    has_found, has_object = table.detections >= 0, table.objects >= 0
    found_class = np.full(len(table), len(names) - 1)
    object_class = found_class.copy()
    found_class[has_found] = found.class_ids[table.detections[has_found]]
    object_class[has_object] = truth.class_ids[table.objects[has_object]]
    missed = table.kinds == MISSED
    found_boxes = _taken(found.boxes_xywh, table.detections)
    object_boxes = _taken(truth.boxes_xywh, table.objects)
    area = np.where(has_object, _taken(truth.area, table.objects), found_boxes[:, 2] * found_boxes[:, 3])
    columns: list[Sequence[Value]] = [
        np.array(KINDS, dtype=object)[table.kinds].tolist(),
        files[table.image_rows].tolist(),
        truth.image_ids[table.image_rows].tolist(),
        names[np.where(missed, object_class, found_class)].tolist(),
        names[np.where(missed, found_class, object_class)].tolist(),
        _rounded_column(_taken(found.scores, table.detections), 4),
        _rounded_column(table.iou, 4),
        np.array(SIZES, dtype=object)[sizes_of(area)].tolist(),
        _rounded_column(table.severity, 4),
        *(_rounded_column(column, 2) for column in found_boxes.T),
        *(_rounded_column(column, 2) for column in object_boxes.T),
    ]
    for row in zip(*columns, strict=True):
        yield list(row)


_SUSPECT_HEAD = (
    "reason",
    "rank",
    "file_name",
    "image_id",
    "class",
    "proposed_class",
    "score",
    "iou",
    *(f"label_{name}" for name in _BOX),
    *(f"proposed_{name}" for name in _BOX),
    "explanation",
)


def _suspect_rows(failures: Failures) -> Iterator[list[Value]]:
    names = failures.class_names
    nowhere = (None,) * len(_BOX)
    for suspect in failures.suspects:
        yield [
            suspect.reason,
            round(suspect.rank, 4),
            suspect.file_name,
            suspect.image_id,
            None if suspect.class_id is None else names[suspect.class_id],
            None if suspect.proposed_class_id is None else names[suspect.proposed_class_id],
            _rounded(suspect.score),
            _rounded(suspect.iou),
            *(round(value, 2) if value is not None else None for value in suspect.box_xywh or nowhere),
            *(round(value, 2) if value is not None else None for value in suspect.proposed_box_xywh or nowhere),
            suspect.explanation,
        ]


def _taken(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Values at some rows, NaN at -1."""
    taken = np.full((len(rows), *values.shape[1:]), np.nan)
    taken[rows >= 0] = values[rows[rows >= 0]]
    return taken


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _rounded_column(values: np.ndarray, digits: int) -> list[Value]:
    """Numbers for a table, None for NaN."""
    rounded: list[Value] = np.round(values, digits).tolist()
    for row in np.flatnonzero(np.isnan(values)).tolist():
        rounded[row] = None
    return rounded
