"""What is planted into a good detector's results stands at the top of the report: kind, class and images."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.evaluation.analysis import Evaluation, Origin, analyze
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.matching import Found
from detrkit.evaluation.report import write_evaluation
from detrkit.evaluation.truth import CocoTruth
from tests.unit.evaluation.failures.cases import add_all, generated_truth, joined, names_of, near_perfect_detector

CLASS = 2
IMAGES = tuple(range(30, 60))

Plant = Callable[[CocoTruth, Found, np.ndarray], Found]


def removed(truth: CocoTruth, found: Found, chosen: np.ndarray) -> Found:
    return found.select(~chosen)


def shuffled(truth: CocoTruth, found: Found, chosen: np.ndarray) -> Found:
    away = np.random.default_rng(0).integers(1, len(truth.class_map), len(found))
    class_ids = np.where(chosen, (found.class_ids + away) % len(truth.class_map), found.class_ids)
    return dataclasses.replace(found, class_ids=class_ids)


def shifted(truth: CocoTruth, found: Found, chosen: np.ndarray) -> Found:
    boxes = found.boxes_xywh.copy()
    boxes[chosen, 0] += 0.5 * boxes[chosen, 2]
    return dataclasses.replace(found, boxes_xywh=boxes)


def shuffled_and_shifted(truth: CocoTruth, found: Found, chosen: np.ndarray) -> Found:
    return shifted(truth, shuffled(truth, found, chosen), chosen)


def doubled(truth: CocoTruth, found: Found, chosen: np.ndarray) -> Found:
    again = found.select(chosen)
    boxes = again.boxes_xywh + 0.03 * np.tile(again.boxes_xywh[:, 2:], 2)
    return joined(found, dataclasses.replace(again, scores=np.full(len(again), 0.97), boxes_xywh=boxes))


def imagined(truth: CocoTruth, found: Found, chosen: np.ndarray) -> Found:
    """Confident detections of the class in the lowest strip, where nothing ever is."""
    images = np.unique(found.image_rows[chosen])
    boxes = np.tile((20.0, 490.0, 90.0, 80.0), (len(images), 1))
    return joined(found, Found(images, np.full(len(images), CLASS), np.full(len(images), 0.98), boxes))


PLANTS: dict[str, Plant] = {
    "missed": removed,
    "classification": shuffled,
    "localization": shifted,
    "both": shuffled_and_shifted,
    "duplicate": doubled,
    "background": imagined,
}


@dataclasses.dataclass(frozen=True)
class Planted:
    """What was planted, and what came of it."""

    kind: str
    images: set[str]
    evaluation: Evaluation
    folder: Path


@pytest.fixture(scope="module", params=PLANTS)
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A report on 150 images, of which up to 30 were spoiled in one way, for objects of one class."""
    truth = generated_truth(11, images=150)
    truth.sizes_hw[:] = (600, 640)
    found = near_perfect_detector(truth)
    chosen = np.isin(found.image_rows, IMAGES) & (found.class_ids == CLASS)
    spoiled = PLANTS[request.param](truth, found, chosen)
    evaluator = add_all(CocoEvaluator(truth), spoiled)
    names = names_of(truth)
    evaluation = analyze(
        evaluator,
        origin=Origin("planted"),
        resamples=0,
        file_names=names,
        read_image=lambda row: picture(truth, row),
    )
    folder = tmp_path_factory.mktemp(request.param)
    write_evaluation(folder, evaluation, evaluator)
    images = {names[row] for row in np.unique(found.image_rows[chosen]).tolist()}
    assert len(images) > 10
    return Planted(request.param, images, evaluation, folder)


def picture(truth: CocoTruth, row: int) -> np.ndarray:
    image = Image.new("RGB", (640, 600), (70, 90, 110))
    for x, y, width, height in truth.boxes_xywh[truth.image_rows == row].astype(int).tolist():
        image.paste((200, 180, 90), (x, y, x + width, y + height))
    return np.asarray(image)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_costliest_kind_is_the_planted_one(planted: Planted):
    errors = planted.evaluation.errors
    assert errors is not None
    kinds = {kind: errors.cost[kind] for kind in PLANTS}
    first = max(kinds, key=lambda kind: kinds[kind])
    # A detection of the wrong class and place finds nothing: TIDE counts its object as missed.
    assert first in ({"missed", "both"} if planted.kind == "both" else {planted.kind})
    assert kinds[planted.kind] > 0.005


def test_the_list_of_failures_begins_with_the_planted_kind_class_and_images(planted: Planted):
    rows = read_csv(planted.folder / "failures.csv")
    mine = [row for row in rows if row["kind"] == planted.kind]
    assert len(mine) >= len(planted.images)
    assert {row["file_name"] for row in mine} == planted.images
    concerned = "other_class" if planted.kind in ("classification", "both") else "class"
    assert {row[concerned] for row in mine} == {f"class {CLASS}"}
    expected = {planted.kind, "missed"} if planted.kind == "both" else {planted.kind}
    assert {row["kind"] for row in rows} == expected


def test_the_planted_images_are_the_worst(planted: Planted):
    rows = read_csv(planted.folder / "images.csv")
    assert {row["file_name"] for row in rows[: len(planted.images)]} == planted.images
    assert all(float(row["severity"]) == 0 for row in rows[len(planted.images) :])
    assert all(int(row[planted.kind]) > 0 for row in rows[: len(planted.images)])


def test_the_page_says_so_at_its_top(planted: Planted):
    page = (planted.folder / "report.html").read_text(encoding="utf-8")
    sections = {re.sub("<[^>]+>", "", part.split("</h2>")[0]).split(">")[-1]: part for part in page.split("<h2")}
    kinds = re.findall(r'<th scope="row"[^>]*>([^<]+)<', sections["Errors"])
    assert kinds.index(planted.kind) <= (1 if planted.kind == "both" else 0)
    captions = re.findall("<figcaption>(.*?)</figcaption>", sections["Failures"], re.DOTALL)
    shown = [caption for caption in captions if caption.startswith(f"{planted.kind}: ")]
    assert captions[0] == shown[0]
    assert len(shown) >= 12
    assert all(f"class {CLASS}" in caption for caption in shown)
    worst = re.findall(r"\d{6}\.jpg", sections["Images, worst first"])
    assert set(worst[: len(planted.images)]) == planted.images
    (lost,) = re.findall("Most is lost to ([^;<]*)", page)
    words = {"both": "missed objects", "missed": "missed objects"}
    assert words.get(planted.kind, f"{planted.kind} errors") in lost


def test_nothing_planted_gives_nothing_to_name(tmp_path):
    truth = generated_truth(11, images=40)
    found = near_perfect_detector(truth)
    evaluator = add_all(CocoEvaluator(truth), found)
    evaluation = analyze(evaluator, resamples=0)
    assert evaluation.failures is not None
    assert len(evaluation.failures.table) == len(evaluation.failures.label_issues) == 0
    write_evaluation(tmp_path, evaluation, evaluator)
    assert read_csv(tmp_path / "failures.csv") == []
    assert "No kind of error costs anything" in (tmp_path / "report.html").read_text(encoding="utf-8")
