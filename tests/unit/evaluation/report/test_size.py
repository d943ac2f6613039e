"""A report of COCO's size."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.classes import ClassMap
from detrkit.evaluation.analysis import analyze
from detrkit.evaluation.coco import CocoEvaluator
from detrkit.evaluation.report.page import write_report
from detrkit.evaluation.truth import CocoTruth
from detrkit.types import ImageDetections

IMAGES, CLASSES, PER_IMAGE = 5000, 80, 100
MOST_BYTES = 15e6


def as_large_as_coco() -> CocoEvaluator:
    rng = np.random.default_rng(0)
    image_rows = np.repeat(np.arange(IMAGES), rng.poisson(7.3, IMAGES))
    count = len(image_rows)
    sides = rng.uniform(10, 200, (count, 2))
    boxes = np.concatenate([rng.uniform(0, 400, (count, 2)), sides], axis=1)
    class_ids = np.minimum(rng.geometric(0.06, count) - 1, CLASSES - 1)
    truth = CocoTruth(
        image_ids=np.arange(IMAGES),
        sizes_hw=np.full((IMAGES, 2), 600),
        image_rows=image_rows,
        class_ids=class_ids,
        boxes_xywh=boxes,
        area=sides.prod(axis=1),
        iscrowd=rng.random(count) < 0.01,
        class_map=ClassMap(tuple(f"class {i}" for i in range(CLASSES)), tuple(range(CLASSES))),
    )
    evaluator = CocoEvaluator(truth)
    ends = np.searchsorted(image_rows, np.arange(IMAGES + 1))
    for image_id in range(IMAGES):
        here = slice(ends[image_id], ends[image_id + 1])
        found = boxes[here] + rng.normal(0, 5, (ends[image_id + 1] - ends[image_id], 4))
        clutter = PER_IMAGE - len(found)
        noise = np.concatenate([rng.uniform(0, 400, (clutter, 2)), rng.uniform(5, 200, (clutter, 2))], axis=1)
        found = np.concatenate([found, noise])
        found[:, 2:] = found[:, :2] + np.maximum(found[:, 2:], 1)
        scores = np.concatenate([rng.beta(4, 2, PER_IMAGE - clutter), rng.beta(1, 4, clutter)])
        labels = np.concatenate([class_ids[here], rng.integers(0, CLASSES, clutter)])
        evaluator.add(image_id, ImageDetections(found, scores, labels))
    return evaluator


@pytest.mark.slow
def test_the_page_of_5000_images_is_small_enough_to_mail(tmp_path):
    noise = np.random.default_rng(0).integers(
        0, 255, (600, 600, 3), dtype=np.uint8
    )  # the worst that JPEG can meet
    names = [f"{number:012d}.jpg" for number in range(IMAGES)]
    evaluation = analyze(as_large_as_coco(), resamples=10, file_names=names, read_image=lambda _row: noise)
    path = write_report(tmp_path / "report.html", evaluation)
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < MOST_BYTES
    assert text.count("<img") > 100
