"""Generated data sets, a simulated detector that is good but not perfect, and ways to spoil either."""

from __future__ import annotations

import dataclasses

import numpy as np

from detrkit.classes import ClassMap
from detrkit.evaluation.error_types import ErrorTypes, classify_errors
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.failures import Failures, find_failures
from detrkit.evaluation.matching import Found, Matches, match_detections
from detrkit.evaluation.truth import CocoTruth
from detrkit.types import ImageDetections

SIZE_HW = (480, 640)


def truth_of(
    *objects: tuple[int, int, tuple[float, ...]], images: int = 3, crowd: tuple[int, ...] = ()
) -> CocoTruth:
    """Objects given by image, class and box, of three classes; ``crowd`` says which are regions of many."""
    order = sorted(range(len(objects)), key=lambda number: objects[number][0])
    boxes = np.array([objects[number][2] for number in order], dtype=np.float64).reshape(-1, 4)
    return CocoTruth(
        image_ids=np.arange(images) * 3 + 7,
        sizes_hw=np.tile(SIZE_HW, (images, 1)),
        image_rows=np.array([objects[number][0] for number in order], dtype=np.int64),
        class_ids=np.array([objects[number][1] for number in order], dtype=np.int64),
        boxes_xywh=boxes,
        area=boxes[:, 2] * boxes[:, 3],
        iscrowd=np.array([number in crowd for number in order], dtype=bool),
        class_map=ClassMap(("cat", "dog", "bird"), (3, 5, 9)),
    )


def found_of(*detections: tuple[int, int, float, tuple[float, ...]]) -> Found:
    """Detections given by image, class, score and box."""
    images, class_ids, scores, boxes = zip(*detections, strict=True) if detections else ((), (), (), ())
    return Found(
        np.array(images, dtype=np.int64),
        np.array(class_ids, dtype=np.int64),
        np.array(scores, dtype=np.float64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
    )


def generated_truth(seed: int = 0, images: int = 200, classes: int = 6, most: int = 6) -> CocoTruth:
    """Objects on a grid of places, so that they hardly overlap; category ids have gaps, image ids too."""
    rng = np.random.default_rng(seed)
    cells = [(160.0 * column, 160.0 * row) for row in range(3) for column in range(4)]
    rows, boxes = [], []
    for row in range(images):
        count = int(rng.integers(1, most + 1))
        for cell in rng.choice(len(cells), count, replace=False).tolist():
            wh = rng.uniform(24, 150, 2)
            xy = np.array(cells[cell]) + rng.uniform(0, 1, 2) * (158 - wh)
            rows.append(row)
            boxes.append((*xy, *wh))
    boxes_xywh = np.array(boxes).reshape(-1, 4)
    return CocoTruth(
        image_ids=np.arange(images) * 3 + 7,
        sizes_hw=np.tile(SIZE_HW, (images, 1)),
        image_rows=np.array(rows, dtype=np.int64),
        class_ids=rng.integers(0, classes, len(rows)),
        boxes_xywh=boxes_xywh,
        area=boxes_xywh[:, 2] * boxes_xywh[:, 3],
        iscrowd=np.zeros(len(rows), dtype=bool),
        class_map=ClassMap(tuple(f"class {number}" for number in range(classes)), tuple(range(2, 3 * classes, 3))),
    )


def simulated_detector(truth: CocoTruth, seed: int = 0) -> Found:
    """Finds nine in ten objects, with boxes some pixels off; some wrong classes, doubles, and clutter."""
    rng = np.random.default_rng(seed)
    seen = np.flatnonzero((rng.random(len(truth.class_ids)) < 0.93) & ~truth.iscrowd)
    right = rng.random(len(seen)) < 0.95
    class_ids = np.where(right, truth.class_ids[seen], (truth.class_ids[seen] + 1) % len(truth.class_map))
    scores = np.where(right, rng.beta(9, 2, len(seen)), rng.beta(4, 4, len(seen)))
    twice = rng.random(len(seen)) < 0.05
    images = len(truth.image_ids)
    clutter = np.repeat(np.arange(images), rng.poisson(8, images))
    strong = rng.random(len(clutter)) < 0.05
    wh = rng.uniform(20, 150, (len(clutter), 2))
    places = rng.uniform(0, 1, (len(clutter), 2)) * (truth.sizes_hw[clutter][:, ::-1] - wh)
    return joined(
        Found(truth.image_rows[seen], class_ids, scores, jittered(rng, truth.boxes_xywh[seen], 0.04)),
        Found(
            truth.image_rows[seen[twice]],
            class_ids[twice],
            0.6 * scores[twice],
            jittered(rng, truth.boxes_xywh[seen[twice]], 0.08),
        ),
        Found(
            clutter,
            rng.integers(0, len(truth.class_map), len(clutter)),
            np.where(strong, rng.beta(4, 4, len(clutter)), rng.beta(1, 15, len(clutter))),
            np.concatenate([places, wh], axis=1),
        ),
    )


def near_perfect_detector(truth: CocoTruth, seed: int = 0) -> Found:
    """Every object, well placed and with a good score."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(~truth.iscrowd)
    scores = rng.uniform(0.75, 0.95, len(rows))
    boxes = jittered(rng, truth.boxes_xywh[rows], 0.02)
    return Found(truth.image_rows[rows], truth.class_ids[rows], scores, boxes)


def jittered(rng: np.random.Generator, boxes_xywh: np.ndarray, share: float) -> np.ndarray:
    """Boxes moved and resized by a share of their size."""
    noise = rng.normal(0, share, boxes_xywh.shape).clip(-3 * share, 3 * share)
    moved: np.ndarray = boxes_xywh + noise * np.tile(boxes_xywh[:, 2:], 2)
    return moved


def joined(*parts: Found) -> Found:
    """All of several."""
    names = [field.name for field in dataclasses.fields(Found) if field.name != "rle"]
    return Found(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def matched(truth: CocoTruth, found: Found) -> Matches:
    """Matches on all images."""
    return match_detections(truth, found, np.arange(len(truth.image_ids)))


def add_all(evaluator: CocoEvaluator, found: Found) -> CocoEvaluator:
    """The evaluator, given the detections image by image."""
    for row, image_id in enumerate(evaluator.truth.image_ids.tolist()):
        here = found.image_rows == row
        boxes = found.boxes_xywh[here]
        boxes_xyxy = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        evaluator.add(image_id, ImageDetections(boxes_xyxy, found.scores[here], found.class_ids[here]))
    return evaluator


def names_of(truth: CocoTruth) -> list[str]:
    """A file name for each image."""
    return [f"{image_id:06d}.jpg" for image_id in truth.image_ids.tolist()]


def failures_of(truth: CocoTruth, found: Found, score: float = 0.5, **options) -> Failures:
    """Failures without pictures, unless ``read_image`` is among the options."""
    matches = matched(truth, found)
    errors: ErrorTypes = classify_errors(matches)
    names = options.pop("file_names", None) or names_of(truth)
    return find_failures(matches, errors, names, options.pop("read_image", None), score=score, **options)


@dataclasses.dataclass(frozen=True)
class Spoiled:
    """A truth with wrong labels: image and box of each label that is gone, and the rows that were changed."""

    truth: CocoTruth
    removed: np.ndarray  # [r, 5]
    swapped: np.ndarray
    shifted: np.ndarray


def with_label_errors(truth: CocoTruth, share: float = 0.05, seed: int = 0) -> Spoiled:
    """The truth with a share of labels removed, a share with the wrong class, and a share of boxes shifted."""
    rng = np.random.default_rng(seed)
    count = round(share * len(truth.class_ids))
    rows = rng.permutation(np.flatnonzero(~truth.iscrowd))
    removed, swapped, shifted = rows[:count], rows[count : 2 * count], rows[2 * count : 3 * count]
    class_ids, boxes = truth.class_ids.copy(), truth.boxes_xywh.copy()
    class_ids[swapped] += rng.integers(1, len(truth.class_map), count)
    class_ids %= len(truth.class_map)
    away = rng.uniform(0.15, 0.35, (count, 2)) * rng.choice([-1, 1], (count, 2))
    boxes[shifted, :2] += away * boxes[shifted, 2:]
    keep = np.ones(len(class_ids), dtype=bool)
    keep[removed] = False
    place = np.cumsum(keep) - 1
    spoiled = dataclasses.replace(
        truth,
        image_rows=truth.image_rows[keep],
        class_ids=class_ids[keep],
        boxes_xywh=boxes[keep],
        area=truth.area[keep],
        iscrowd=truth.iscrowd[keep],
    )
    gone = np.concatenate([truth.image_rows[removed, None], truth.boxes_xywh[removed]], axis=1)
    return Spoiled(spoiled, gone, place[swapped], place[shifted])
