"""``detrkit.compare`` on detections with known faults, and what it keeps."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detrkit
from detrkit.api import compare as verbs
from detrkit.classes import ClassMap, SizeHW
from detrkit.comparison.detections import DetectionStore, file_stems
from detrkit.comparison.result import Comparison
from detrkit.detectors.detector import Detector
from detrkit.detectors.find import find_target
from detrkit.detectors.on_split import collect
from detrkit.errors import DetrkitError, UsageError
from detrkit.evaluation.truth import ground_truth_from_index
from detrkit.types import ImageDetections
from tests.unit.comparison.contenders import CATEGORIES, IMAGES, write_data, write_found
from tests.unit.detectors.fakes import FakeStages
from tests.unit.detectors.splits import split_of

FILES = {"compare.html", "compare.json", "compare.md", "compare.csv", "classes.csv", "images.csv"}
HOSTILE = {
    1: "<script>alert(1)</script>",
    3: "=cmd|' /C calc'!A0",
    9: "\u202egnp.exe \U0001f600 \"q\" 'a' </table>" + "x" * 500,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def compared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """A detector that never sees a dog, one that does, and one that is as good."""
    root = tmp_path_factory.mktemp("compared")
    blind = write_found(root / "blind.json", data, without=[3], jitter=1.0, seed=1)
    good = write_found(root / "good.json", data, jitter=1.0, seed=1)
    equal = write_found(root / "equal.json", data, without=[3], jitter=1.0, seed=3)
    out = root / "out"
    return verbs.compare([blind, good, equal], data, out=out, resamples=100), out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_numbers_are_those_of_each_alone(compared: tuple[Comparison, Path], data: Path):
    comparison, out = compared
    split = split_of(data)
    for model in comparison.models:
        alone = collect(find_target(model.source), split).finish()
        assert model.metrics.values == alone.values
    assert {path.name for path in out.iterdir()} >= FILES
    first, second = (model.metrics["AP"] for model in comparison.models[:2])
    difference = comparison.pairs[0].differences.values["AP"]
    assert difference.value == pytest.approx(second - first)


def test_a_planted_loss_is_found_in_its_class_and_said(compared: tuple[Comparison, Path]):
    comparison, _ = compared
    better, same = comparison.pairs
    assert "good.json is better than" in better.verdict()
    assert "no difference beyond chance between" in same.verdict()
    classes = {entry.name: entry for entry in better.classes}
    assert better.classes[0].name == "dog"
    assert classes["dog"].first == 0
    assert classes["dog"].beyond_chance
    assert classes["cat"].value == 0
    assert not classes["cat"].beyond_chance
    # On every image exactly the dog makes the difference, for the better unless it is badly placed.
    assert (better.images.disagreement > 0).all()
    assert (better.images.gain > 0).mean() > 0.9


def test_the_files_say_the_same(compared: tuple[Comparison, Path]):
    comparison, out = compared
    content = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(comparison.to_dict()))
    assert [model["AP"] for model in content["models"]] == [c.metrics["AP"] for c in comparison.models]
    assert content["comparisons"][0]["verdict"] == comparison.verdicts[0]
    table = rows_of(out / "compare.csv")
    assert [float(row["AP"]) / 100 for row in table] == pytest.approx([c.metrics["AP"] for c in comparison.models])
    assert len(rows_of(out / "images.csv")) == 2 * IMAGES
    assert len(rows_of(out / "classes.csv")) == 2 * len(CATEGORIES)
    summary = (out / "compare.md").read_text(encoding="utf-8")
    assert "Greatest gains" in summary
    assert "`dog` +" in summary


def test_files_alone_are_compared_without_the_images(data: Path, tmp_path: Path):
    blind, good = (write_found(tmp_path / f"{place}.json", data, without=[3] * place) for place in (1, 0))
    with_images = verbs.compare([blind, good], data, out=tmp_path / "with", resamples=20)
    annotations = tmp_path / "only.json"
    annotations.write_bytes((data / "annotations" / "instances_val2017.json").read_bytes())
    without = verbs.compare([blind, good], annotations, out=tmp_path / "without", resamples=20)
    assert without.verdicts == with_images.verdicts
    page = (tmp_path / "without" / "compare.html").read_text(encoding="utf-8")
    assert "The images are not there to be shown." in page
    assert "<img" not in page
    assert "<img" in (tmp_path / "with" / "compare.html").read_text(encoding="utf-8")


def test_hostile_names_are_text_everywhere(tmp_path: Path):
    names = {1: "=1+1.png", 2: "<img src=x onerror=alert(2)>.png", 3: "\u202egpj.\U0001f600'\".png"}
    data = write_data(tmp_path / "data", HOSTILE, names)
    model = tmp_path / "<b onclick=alert(3)>&.json"
    first = write_found(model, data, without=[1])
    second = write_found(tmp_path / "b.json", data, without=[3, 9])
    verbs.compare([first, second], data, out=tmp_path / "out", resamples=20)
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page
    for text in ("<script>alert", "<img src=x", "<b onclick", "\u202e", "' /C calc'!"):
        assert text not in page
    assert "x" * 500 not in (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    summary = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "<script" not in summary
    assert "<b onclick" not in summary
    for name in ("compare.csv", "classes.csv", "images.csv"):
        for row in rows_of(tmp_path / "out" / name):
            assert not any(value.startswith(("=", "@", "+")) for value in row.values())
    assert any(row["class"] == "'" + HOSTILE[3] for row in rows_of(tmp_path / "out" / "classes.csv"))


def test_what_is_asked_wrongly_is_said(data: Path, tmp_path: Path):
    paths = [write_found(tmp_path / name, data) for name in ("a.json", "b.json")]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"models": paths[:1]}, "1 model to compare, expected two or more"),
        ({"models": paths[0]}, "1 model to compare"),
        ({"classes": "some"}, r"classes is 'some' \(str\), expected Literal\['shared', 'all'\]"),
        ({"reference": "worst"}, "reference is 'worst'"),
        ({"latency_images": -1}, "latency_images is -1"),
        ({"resamples": 2}, "resamples is 2"),
    ]
    for arguments, message in wrong:
        with pytest.raises(UsageError, match=message):
            detrkit.compare(**{"data": data, "models": paths, "out": tmp_path / "out", **arguments})


class Counting:
    """A detector that says the same of every image and counts how often it is asked."""

    def __init__(self, network: nn.Module | None = None):
        self.runs = 0
        self.fake = FakeStages(self._count)
        if network is not None:
            self.fake.network = network
        self.fails_after = 10**9

    def subject(self, name: str = "counting", settings: str = "") -> Detector:
        stages: Any = self.fake
        stages.postprocess = self._found
        return Detector(stages, ClassMap(("cat", "dog"), (1, 3)), name=name, kind="fake", settings=settings)

    def _count(self, stage: str) -> None:
        if stage == "model":
            self.runs += 1
            if self.runs > self.fails_after:
                raise KeyboardInterrupt

    def _found(self, outputs: Tensor, sizes: list[SizeHW]) -> list[ImageDetections]:
        boxes = np.array([[4, 20, 28, 50], [34, 20, 58, 50]], np.float32)
        return [ImageDetections(boxes, np.array([0.9, 0.4], np.float32), np.array([0, 1])) for _ in sizes]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).eval()


def obtained(counting: Counting, out: Path, data: Path, **options: Any) -> tuple[dict[str, Any], bool]:
    split = split_of(data)
    truth = ground_truth_from_index(split.index)
    evaluator, reused, _ = DetectionStore(out, split).obtain(counting.subject(**options), "m", truth, None, None)
    return evaluator.packed(), reused


def test_detections_are_made_once_and_used_again(network: nn.Module, data: Path, tmp_path: Path):
    first, again = Counting(network), Counting(network)
    made, reused = obtained(first, tmp_path, data)
    assert (reused, first.runs) == (False, IMAGES)
    kept, reused = obtained(again, tmp_path, data)
    assert (reused, again.runs) == (True, 0)
    for image_id, found in made.items():
        for column, other in zip(found[:3], kept[image_id][:3], strict=True):
            np.testing.assert_array_equal(column, other)
    assert collect(find_target(tmp_path / "detections" / "m.json"), split_of(data)).finish()["AP"] > 0


def test_other_weights_settings_or_files_make_them_anew(network: nn.Module, data: Path, tmp_path: Path):
    obtained(Counting(network), tmp_path, data)
    assert not obtained(Counting(network), tmp_path, data, settings="other")[1]
    assert obtained(Counting(network), tmp_path, data, settings="other")[1]
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-6
    assert not obtained(Counting(network), tmp_path, data, settings="other")[1]
    for name, content in (("m.json", "[]"), ("made_from.json", "{")):
        path = tmp_path / "detections" / name
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UsageError, match=name):  # who changed it may want to keep it
            obtained(Counting(network), tmp_path, data, settings="other")
        assert path.read_text(encoding="utf-8") == content
        path.unlink()
        assert not obtained(Counting(network), tmp_path, data, settings="other")[1]
    assert obtained(Counting(network), tmp_path, data, settings="other")[1]


def test_another_image_under_the_same_name_makes_them_anew(network: nn.Module, tmp_path: Path):
    data = write_data(tmp_path / "data")
    obtained(Counting(network), tmp_path, data)
    image = data / "val2017" / "0003.png"
    image.write_bytes(image.read_bytes() + b"\0")
    assert not obtained(Counting(network), tmp_path, data)[1]


def test_a_comparison_that_is_killed_goes_on_with_what_is_complete(
    network: nn.Module, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    detectors = {"a": Counting(network), "b": Counting(network)}
    monkeypatch.setattr(verbs, "find_target", lambda name, **_: detectors[name].subject(name, settings=name))
    detectors["b"].fails_after = 10
    out = tmp_path / "out"

    def run() -> Comparison:
        return verbs.compare(["a", "b"], data, out=out, resamples=20, latency_images=0)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert sorted(path.name for path in (out / "detections").glob("[!.]*")) == ["a.json", "made_from.json"]
    spent = detectors["a"].runs
    detectors["b"].fails_after = 10**9
    said = [model.reused for model in run().models]
    assert said == [True, False]
    assert detectors["a"].runs - spent < IMAGES  # only its cost was counted again


def test_a_model_that_cannot_run_stops_all_before_the_long_work(
    network: nn.Module, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    good, broken = Counting(network), Counting(nn.Conv2d(5, 1, 1))
    detectors: Iterator[Detector] = iter([good.subject("good"), broken.subject("broken")])
    monkeypatch.setattr(verbs, "find_target", lambda *_, **__: next(detectors))
    with pytest.raises(DetrkitError, match="broken was loaded but cannot detect"):
        verbs.compare(["good", "broken"], data, out=tmp_path / "out")
    assert good.runs < IMAGES


def test_file_names_are_harmless_and_differ():
    names = ["../../x", "a/b", "a-b", "A-B", "hf:some/one", "é" * 300, "made_from"]
    stems = file_stems(names)
    assert stems == ["x", "a-b", "a-b-2", "A-B-3", "hf-some-one", "model", "made_from-2"]
