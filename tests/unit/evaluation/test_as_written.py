"""The evaluator gets annotations and results as their files have them, so that every number is pycocotools'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.api.evaluate import evaluate
from detrkit.config import Config
from detrkit.data.split import read_split
from detrkit.detectors.on_split import collect
from detrkit.detectors.results import ResultsFile
from detrkit.evaluation.coco import METRIC_NAMES
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.matching import IOU_THRESHOLDS, box_iou
from detrkit.evaluation.report import warnings

from .test_coco import pycocotools_eval
from .test_matching import expected_matches


def files(folder: Path, content: dict[str, Any], results: list[dict[str, Any]]) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    annotations, found = folder / "annotations.json", folder / "results.json"
    annotations.write_text(json.dumps(content), encoding="utf-8")
    found.write_text(json.dumps(results), encoding="utf-8")
    return annotations, found


def collected(folder: Path, content: dict[str, Any], results: list[dict[str, Any]]) -> CocoEvaluator:
    annotations, found = files(folder, content, results)
    return collect(ResultsFile(found), read_split(Config(), "val", annotations, strict=True, pixels=False))


def check_equal(evaluator: CocoEvaluator, content: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """The twelve numbers, each class's AP and every match equal pycocotools'."""
    metrics, reference = evaluator.finish(), pycocotools_eval(content, results)
    assert [metrics[name] for name in METRIC_NAMES] == reference.stats.tolist()
    precision = reference.eval["precision"][:, :, :, 0, 2]
    defined = [values[values > -1] for values in np.moveaxis(precision, 2, 0)]
    assert [entry.AP for entry in metrics.per_class] == [
        values.mean() if len(values) else -1 for values in defined
    ]
    matches = evaluator.matches()
    theirs = expected_matches(content, results, matches)
    for name, expected in zip(("matched", "ignored", "found_by"), theirs, strict=True):
        np.testing.assert_array_equal(getattr(matches, name), expected, err_msg=name)


def pairs_on_thresholds(seed: int, count: int = 2000) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects and detections, eight an image, whose IoU is a threshold to the last bit or one bit beside it."""
    random = np.random.default_rng(seed)
    objects, threshold = (
        random.uniform(1, 150, (20 * count, 4)).round(2),
        random.choice(IOU_THRESHOLDS, 20 * count),
    )
    found, way = objects.copy(), random.integers(0, 3, len(objects))
    for side in (0, 1):
        found[way == side, 2 + side] *= threshold[way == side]
    found[way == 2, 0] += (objects[:, 2] * (1 - threshold) / (1 + threshold))[way == 2]
    close = np.flatnonzero(np.abs(box_iou(found, objects) - threshold) <= np.spacing(threshold))[:count]
    assert len(close) == count
    images = np.arange(count) // 8
    crowd, score = random.random(count) < 0.1, random.choice([0.25, 0.5, 0.75], count)
    areas, classes = random.choice([32.0**2, 96.0**2, 31.9**2], count), 3 * (random.integers(0, 5, count) + 1)
    shift = 200 * np.stack([np.arange(count) % 8, np.zeros(count), np.zeros(count), np.zeros(count)], axis=1)
    objects, found = objects[close] + shift, found[close] + shift
    content = {
        "images": [
            {"id": 7 * row + 5, "file_name": f"{row}.jpg", "height": 640, "width": 1760} for row in range(250)
        ],
        "categories": [{"id": 3 * row + 3, "name": f"class {row}"} for row in range(5)],
        "annotations": [
            {
                "id": row + 1,
                "image_id": 7 * int(images[row]) + 5,
                "category_id": int(classes[row]),
                "bbox": objects[row].tolist(),
                "area": float(areas[row]),
                "iscrowd": int(crowd[row]),
            }
            for row in range(count)
        ],
    }
    results = [
        {key: entry[key] for key in ("image_id", "category_id")} | {"bbox": box, "score": float(value)}
        for entry, box, value in zip(content["annotations"], found.tolist(), score, strict=True)
    ]
    return content, results


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_an_iou_on_a_threshold_counts_as_in_pycocotools(tmp_path: Path, seed: int):
    content, results = pairs_on_thresholds(seed)
    evaluator = collected(tmp_path, content, results)
    check_equal(evaluator, content, results)
    boxes = evaluator.truth.boxes_xywh.copy()
    boxes[:, 2:] = (boxes[:, :2] + boxes[:, 2:]) - boxes[:, :2]
    assert (boxes != evaluator.truth.boxes_xywh).any()  # corners and back would have lost bits


def odd_content(change: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Three sound objects of 40 x 40, found; and one that is odd, with detections at 20, 20 and where it is."""
    boxes = [[60 * row, 100, 40, 40] for row in range(3)]
    annotations = [
        {"id": 11 + row, "image_id": 1, "category_id": 1, "bbox": box, "area": 1600, "iscrowd": 0}
        for row, box in enumerate(boxes)
    ]
    odd = {
        "id": 20,
        "image_id": 1,
        "category_id": 1,
        "bbox": [20, 20, 40, 40],
        "area": 1600,
        "iscrowd": 0,
        **change,
    }
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [*annotations, odd],
    }
    found = [[20, 20, 40, 40], *boxes, [value if value > 0 else 0 for value in odd["bbox"]]]
    if (np.array(odd["bbox"][2:]) > 0).all():
        found.append(odd["bbox"])
    results = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9 - 0.1 * n} for n, box in enumerate(found)
    ]
    return content, results


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [-10, 20, 40, 40]},
        {"bbox": [180, 20, 40, 40]},
        {"bbox": [300, 20, 40, 40]},
        {"bbox": [20, 20, 0, 40]},
        {"bbox": [20, 20, -40, 40]},
        {"area": -5},
        {"area": 0},
        {"area": 2e10},
        {"bbox": [0, 0, 2e5, 2e5], "area": 4e10},
        {"area": -5, "iscrowd": 1},
    ],
    ids=str,
)
def test_what_training_repairs_is_measured_as_it_is(tmp_path: Path, change: dict[str, Any]):
    content, results = odd_content(change)
    check_equal(collected(tmp_path, content, results), content, results)


def test_annotations_of_unlisted_images_and_classes_do_not_count(tmp_path: Path):
    content, results = odd_content({"category_id": 5})
    content["annotations"].append({**content["annotations"][0], "id": 30, "image_id": 9})
    evaluator = collected(tmp_path, content, results)
    assert evaluator.finish().objects == 3
    assert [evaluator.finish()[name] for name in METRIC_NAMES] == pycocotools_eval(content, results).stats.tolist()


def same_id(annotations: list[dict[str, Any]]) -> None:
    annotations[1]["id"] = annotations[0]["id"]


def same_id_elsewhere(annotations: list[dict[str, Any]]) -> None:
    annotations[3] |= {"id": annotations[0]["id"], "image_id": 2}


def id_zero(annotations: list[dict[str, Any]]) -> None:
    annotations[2]["id"] = 0


def all_ids_alike(annotations: list[dict[str, Any]]) -> None:
    for annotation in annotations:
        annotation["id"] = 0


@pytest.mark.parametrize("change", [same_id, same_id_elsewhere, id_zero, all_ids_alike])
def test_ids_that_pycocotools_misreads_are_counted_and_its_number_is_said(tmp_path: Path, change: Any):
    content, results = odd_content({})
    content["images"].append({"id": 2, "file_name": "b.jpg", "height": 200, "width": 200})
    sound, _ = odd_content({})
    sound["images"] = content["images"]
    change(content["annotations"])
    for annotation, other in zip(content["annotations"], sound["annotations"], strict=True):
        other["image_id"] = annotation["image_id"]
    annotations, found = files(tmp_path, content, results)
    evaluation = evaluate(found, annotations, explain=False, resamples=0)
    reference = float(pycocotools_eval(content, results).stats[0])
    assert evaluation["AP"] == pycocotools_eval(sound, results).stats[0] != pytest.approx(reference)
    assert evaluation.other_readings == {"pycocotools": pytest.approx(reference, abs=1e-12)}
    assert f"AP is {100 * reference:.1f}" in "".join(warnings(evaluation))


def test_what_training_repairs_is_named_with_the_ap_of_the_repaired_file(tmp_path: Path):
    content, results = odd_content({"bbox": [-10, 20, 40, 40]})
    content["annotations"][0] |= {"area": -3}
    content["annotations"][1] |= {"bbox": [60, 100, 0, 40]}
    repaired, _ = odd_content({"bbox": [0, 20, 30, 40]})
    del repaired["annotations"][1]
    annotations, found = files(tmp_path, content, results)
    evaluation = evaluate(found, annotations, explain=False, resamples=0)
    assert evaluation["AP"] == pycocotools_eval(content, results).stats[0]
    expected = float(pycocotools_eval(repaired, results).stats[0])
    assert evaluation.other_readings == {"repaired": pytest.approx(expected, abs=1e-12)}
    assert "3 annotations (11, 12, 20)" in "".join(warnings(evaluation))


def test_a_sound_file_has_one_reading(tmp_path: Path):
    content, results = odd_content({})
    annotations, found = files(tmp_path, content, results[:4])
    evaluation = evaluate(found, annotations, explain=False, resamples=0)
    assert (evaluation.other_readings, evaluation.notes) == ({}, ())


def test_boxes_that_reading_turns_are_said_with_the_ap_of_those_stored(tmp_path: Path):
    content, results = odd_content({"bbox": [20, 60, 60, 10], "attributes": {"rotation": 90}})
    annotations, found = files(tmp_path, content, results)
    evaluation = evaluate(found, annotations, explain=False, resamples=0)
    expected = float(pycocotools_eval(content, results).stats[0])
    assert evaluation.other_readings == {"stored_boxes": pytest.approx(expected, abs=1e-12)}
    assert evaluation["AP"] != pytest.approx(expected)
    assert "1 boxes by their own angle" in "".join(warnings(evaluation))
