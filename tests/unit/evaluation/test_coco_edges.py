"""The twelve numbers equal pycocotools' where data sets and results are unusual."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detrkit.evaluation.analysis import analyze
from detrkit.evaluation.coco import METRIC_NAMES, UNDEFINED
from detrkit.evaluation.report import metrics_content
from tests.unit.evaluation.test_coco import evaluate, pycocotools_eval, random_case, written


def nothing_detected(content, _detections):
    return content, {}


def nothing_annotated(content, detections):
    return {**content, "annotations": []}, detections


def everything_tied(content, detections):
    return content, {
        key: found._replace(scores=np.full_like(found.scores, 0.5)) for key, found in detections.items()
    }


def a_thousand_detections_an_image(_content, _detections):
    return random_case(11, images=5, classes=3, per_image=1000)


def one_class(content, detections):
    annotations = [{**entry, "category_id": 2} for entry in content["annotations"]]
    alone = {**content, "annotations": annotations, "categories": content["categories"][:1]}
    return alone, {
        key: found._replace(class_ids=np.zeros_like(found.class_ids)) for key, found in detections.items()
    }


def everything_in_crowds(content, detections):
    return {**content, "annotations": [{**entry, "iscrowd": 1} for entry in content["annotations"]]}, detections


def boxes_without_area(content, detections):
    flat = {key: found._replace(boxes_xyxy=found.boxes_xyxy[:, [0, 1, 0, 1]]) for key, found in detections.items()}
    return content, flat


CASES = (
    nothing_detected,
    nothing_annotated,
    everything_tied,
    a_thousand_detections_an_image,
    one_class,
    everything_in_crowds,
    boxes_without_area,
)


@pytest.mark.parametrize("change", CASES, ids=lambda change: change.__name__)
def test_all_twelve_numbers_equal_pycocotools(change, tmp_path):
    content, detections = change(*random_case(10))
    evaluator = evaluate(content, detections)
    reference = pycocotools_eval(content, written(evaluator, tmp_path))
    expected = [float(value) for value in reference.stats]
    metrics = evaluator.finish()
    assert [metrics[name] for name in METRIC_NAMES] == expected
    evaluation = analyze(evaluator, resamples=10)
    assert [evaluation[name] for name in METRIC_NAMES] == expected
    content = metrics_content(evaluation)
    assert [UNDEFINED if content[name] is None else content[name] for name in METRIC_NAMES] == expected
    json.dumps(content, allow_nan=False)
