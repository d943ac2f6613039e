"""Detectors on made-up images whose true AP is known, to measure whether intervals cover it.

An image has a difficulty of its own that its objects share, so that images, not objects, are independent. Objects
are missed, found, found badly, found twice or taken for another class, and now and then something is found where
nothing is.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from detrkit.classes import ClassMap
from detrkit.evaluation.matching import Found, Matches, match_detections
from detrkit.evaluation.truth import CocoTruth

SIDE = 640


@dataclasses.dataclass(frozen=True)
class Scene:
    """What images hold.

    Args:
        objects: Mean objects of each class in an image.
        clustering: Shape of the gamma distribution of a class's rate in an image; small: many in few images.
    """

    objects: tuple[float, ...]
    clustering: float = 1.0


@dataclasses.dataclass(frozen=True)
class Skill:
    """How good a detector is.

    Args:
        found: Of the objects of an image of middling difficulty, the share that is found.
        spread: How much images differ, in logits.
        noise: Standard deviation of a found box's sides, as a share of the object's.
        confused: Of the found, the share given another class.
        twice: Of the found, the share found a second time.
        background: Mean detections where nothing is, of each class in an image.
        contrast: How far the scores of right detections lie above those of wrong ones, in logits.
    """

    found: float = 0.85
    spread: float = 1.0
    noise: float = 0.05
    confused: float = 0.08
    twice: float = 0.1
    background: float = 0.6
    contrast: float = 2.0


@dataclasses.dataclass(frozen=True)
class _Objects:
    image_rows: np.ndarray
    class_ids: np.ndarray
    boxes_xywh: np.ndarray


def simulate(scene: Scene, skills: list[Skill], images: int, seed: int) -> list[Matches]:
    """Each detector's matches on the same images."""
    random = np.random.default_rng(seed)
    objects = _place(scene, images, random)
    difficulty = random.normal(size=images)  # shared: what is hard for one detector is hard for another
    truth = CocoTruth(
        image_ids=np.arange(images),
        sizes_hw=np.full((images, 2), SIDE),
        image_rows=objects.image_rows,
        class_ids=objects.class_ids,
        boxes_xywh=objects.boxes_xywh,
        area=objects.boxes_xywh[:, 2] * objects.boxes_xywh[:, 3],
        iscrowd=np.zeros(len(objects.image_rows), dtype=bool),
        class_map=ClassMap(
            tuple(f"class {i}" for i in range(len(scene.objects))), tuple(range(1, len(scene.objects) + 1))
        ),
    )
    everything = np.arange(images)
    return [
        match_detections(truth, _detect(skill, objects, difficulty, len(scene.objects), random), everything)
        for skill in skills
    ]


def _place(scene: Scene, images: int, random: np.random.Generator) -> _Objects:
    classes = len(scene.objects)
    rates = random.gamma(scene.clustering, 1 / scene.clustering, (images, classes)) * np.array(scene.objects)
    counts = random.poisson(rates).ravel()
    image_rows, class_ids = np.divmod(np.repeat(np.arange(images * classes), counts), classes)
    return _Objects(image_rows, class_ids, _boxes(len(image_rows), random))


def _detect(
    skill: Skill, objects: _Objects, difficulty: np.ndarray, classes: int, random: np.random.Generator
) -> Found:
    images = len(difficulty)
    ease = np.log(skill.found / (1 - skill.found)) - skill.spread * difficulty
    own = ease[objects.image_rows] + random.normal(0, 1, len(objects.image_rows))
    first = np.flatnonzero(random.random(len(own)) < 1 / (1 + np.exp(-own)))
    again = first[random.random(len(first)) < skill.twice]
    rows = np.concatenate([first, again])
    class_ids = objects.class_ids[rows].copy()
    wrong = random.random(len(rows)) < skill.confused
    class_ids[wrong] = random.integers(0, classes, wrong.sum())
    noise = skill.noise * np.exp(random.normal(0, 0.5, len(rows)))
    noise[len(first) :] *= 2
    boxes = objects.boxes_xywh[rows].copy()
    boxes += random.normal(size=boxes.shape) * (noise[:, None] * np.tile(boxes[:, 2:], 2))
    scores = skill.contrast + 0.5 * own[rows] - 6 * (noise - skill.noise) + random.normal(size=len(rows))
    scores[wrong] -= 1
    scores[len(first) :] -= 1.5
    counts = random.poisson(skill.background, images * classes)
    empty_rows, empty_classes = np.divmod(np.repeat(np.arange(images * classes), counts), classes)
    logits = np.concatenate([scores, random.normal(0, 1.2, len(empty_rows))])
    boxes = np.concatenate([boxes, _boxes(len(empty_rows), random)])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1.0)
    return Found(
        image_rows=np.concatenate([objects.image_rows[rows], empty_rows]),
        class_ids=np.concatenate([class_ids, empty_classes]),
        scores=1 / (1 + np.exp(-logits)),
        boxes_xywh=boxes,
    )


def _boxes(count: int, random: np.random.Generator) -> np.ndarray:
    sides = np.exp(random.normal(4.3, 0.7, (count, 2))).clip(8, SIDE * 0.9)
    return np.concatenate([random.random((count, 2)) * (SIDE - sides), sides], axis=1)
