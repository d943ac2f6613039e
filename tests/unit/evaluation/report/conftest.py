"""Evaluations that several tests look at, made once."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.evaluation.analysis import Evaluation, Origin, analyze
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.latency import Latency, Percentiles
from tests.unit.evaluation.report.simulated import detected, generated

PIXELS = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
TIMES = Percentiles.of([9.0, 10.0, 11.0])
LATENCY = Latency(TIMES, TIMES, TIMES, TIMES, 1, 3, 3, 2, "cpu", 1)
HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "right\u202eto left",
    "=HYPERLINK(1) | [link](http://evil.example) @someone `code`",
    "emoji 🦖",
    "x" * 500,
    "</script><b>",
]


def read_image(_row: int) -> np.ndarray:
    return PIXELS


def made(content, **options) -> Evaluation:
    origin = Origin("detr-r50", "detrkit", "my-dataset", "val")
    names = [entry["file_name"] for entry in sorted(content["images"], key=lambda entry: entry["id"])]
    return analyze(detected(content), **{"origin": origin, "resamples": 50, "file_names": names, **options})


@pytest.fixture(scope="session")
def plain() -> Evaluation:
    """With everything, pictures and times too."""
    return made(generated(), read_image=read_image, latency=LATENCY)


@pytest.fixture(scope="session")
def hostile() -> Evaluation:
    """With class names, file names and a model name that want to be more than names."""
    content = generated(images=30, names=HOSTILE, prefix=HOSTILE[1])
    origin = Origin(HOSTILE[0], HOSTILE[1], HOSTILE[3], HOSTILE[6], settings={HOSTILE[0]: HOSTILE[1]})
    return made(content, read_image=read_image, origin=origin)


def nothing_detected() -> Evaluation:
    return analyze(CocoEvaluator(generated()), resamples=20)


def nothing_to_find() -> Evaluation:
    return made({**generated(), "annotations": []})


def one_class() -> Evaluation:
    return made(generated(names=["cell"]))


def one_image() -> Evaluation:
    return made(generated(images=1, seed=3))


def only_numbers() -> Evaluation:
    return made(generated(), explain=False, resamples=0)


def not_probabilities() -> Evaluation:
    evaluator = detected(generated())
    for row, found in evaluator._added.items():
        evaluator._added[row] = found._replace(scores=found.scores * 100 - 20)
    return analyze(evaluator, resamples=20)


def many_classes() -> Evaluation:
    return made(generated(images=80, names=[f"class {i}" for i in range(45)], seed=5))


EDGES = (nothing_detected, nothing_to_find, one_class, one_image, only_numbers, not_probabilities, many_classes)


@pytest.fixture(scope="session", params=EDGES, ids=lambda make: make.__name__)
def edge(request) -> Evaluation:
    return request.param()
