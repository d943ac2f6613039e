"""Drift: none on samples of the reference, and what was planted is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from detrkit.cli import app
from detrkit.errors import DataError
from detrkit.monitoring.drift import find_drift
from detrkit.monitoring.observations import Observation, read_samples
from tests.support.bundles import bundle_files, write_files


def seen(count: int, seed: int, dim: float = 1.0, dogs: float = 0.3, small: float = 1.0) -> list[Observation]:
    """Pictures whose detections are alike within a picture, as they are in life."""
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        number, light, kind = random.poisson(4), random.beta(8, 8), random.random() < dogs
        scores = np.clip(random.beta(6, 3) + random.normal(0, 0.05, number), 0.5, 1).tolist()
        sizes = np.clip(small * (random.beta(2, 6) + random.normal(0, 0.02, number)), 0.01, 1).tolist()
        best = max(scores, default=0.3)
        found.append(Observation(dim * light, 500.0, best, tuple(scores), tuple(sizes), (int(kind),) * number))
    return found


def drift(reference: list[Observation], samples: list[Observation]) -> Any:
    return find_drift(reference, samples, data="pets", class_names=("cat", "dog"))


@pytest.mark.parametrize("counts", [(60, 40), (150, 60)])
def test_samples_of_the_same_pictures_never_cry_wolf(counts: tuple[int, int]):
    first, second = counts
    assert not [seed for seed in range(8) if drift(seen(first, seed), seen(second, 1000 + seed)).drifted]


@pytest.mark.slow
def test_samples_of_the_same_pictures_cry_wolf_once_in_a_hundred_at_most():
    assert sum(bool(drift(seen(200, seed), seen(100, 10_000 + seed)).drifted) for seed in range(300)) <= 7


@pytest.mark.parametrize(
    ("planted", "name"), [({"dim": 0.5}, "brightness"), ({"dogs": 0.8}, "classes"), ({"small": 0.5}, "box sizes")]
)
def test_planted_drift_is_seen_and_nothing_else(planted: dict[str, float], name: str):
    found = drift(seen(150, 0), seen(100, 1, **planted))
    assert found.drifted == (name,)
    assert f"DRIFT {name}" in "\n".join(found.lines())
    assert name in found.verdict
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["drifted"] == [name]


def test_a_change_too_small_to_matter_is_no_drift_however_sure():
    found = drift(seen(1000, 0), seen(1000, 1, dim=0.97))
    brightness = next(one for one in found.measures if one.name == "brightness")
    assert brightness.p <= 0.01
    assert brightness.distance < 0.1
    assert not found.drifted


def test_few_pictures_are_refused_and_measures_without_values_are_named():
    with pytest.raises(DataError, match="29 samples"):
        drift(seen(50, 0), seen(29, 1))
    empty = [Observation(0.5, 500.0, 0.1, (), (), ())] * 40
    found = drift(seen(50, 0), empty)
    assert "box sizes" in found.notes[-1]
    assert "objects a picture" in found.drifted


def pictures(folder: Path, count: int, level: float, seed: int, suffix: str = ".png") -> Path:
    """Pictures of some mean brightness, in which the bundle finds a dog if that is over a half."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = np.full((48, 64, 3), np.clip(random.normal(level, 0.08), 0, 1) * 255, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}{suffix}", format="PNG")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = pictures(tmp_path / "data" / "val", 40, 0.6, 0)
    images = [
        {"id": int(path.stem) + 1, "file_name": path.name, "height": 48, "width": 64} for path in folder.iterdir()
    ]
    content = {
        "images": images,
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 18, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    }
    (tmp_path / "data" / "annotations").mkdir()
    (tmp_path / "data" / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return tmp_path / "data"


def run(*words: object) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


def test_the_command_compares_served_samples_and_writes_those_for_labelling(tmp_path: Path, data: Path):
    bundle = write_files(tmp_path / "bundle", bundle_files())
    same = pictures(tmp_path / "same", 40, 0.6, 1, ".img")
    lines = [
        {"time": f"2026-01-0{1 + n % 9}", "file": f"{n:02}.img", "model": "mean", "version": "1"}
        for n in range(40)
    ]
    text = "\n".join(map(json.dumps, [*lines, {"file": "../secret"}, {"file": "gone.img"}])) + '\n{"file": "cut'
    (same / "samples.jsonl").write_text(text)
    Image.new("RGB", (8, 8)).save(same / "extra.img", format="PNG")
    out = tmp_path / "out"
    result = run("drift", same, bundle, "--data", data, "--out", out, "--label", 5)
    assert result.exit_code == 0, result.output
    for fact in (
        "no drift is seen",
        "40 pictures",
        "2026-01-09",
        "1 of its lines cannot",
        "2 of its lines name",
        "1 of the pictures have no line",
    ):
        assert fact in result.output
    assert "| ok | brightness" in (out / "drift.md").read_text()
    # the least sure ones, as other verbs read them
    sampled = run("data", "sample", out / "label", "--out", tmp_path / "sampled", "--count", 3)
    assert sampled.exit_code == 0, sampled.output
    content = json.loads((out / "label" / "annotations" / "instances_train.json").read_text())
    assert [image["file_name"][-4:] for image in content["images"]] == [".png"] * 5
    doubts = [image["doubt"] for image in content["images"]]
    assert doubts == sorted(doubts, reverse=True)
    assert all(0.5 <= entry["score"] <= 1 and entry["category_id"] == 18 for entry in content["annotations"])
    # later, and without the data
    dark = pictures(tmp_path / "dark", 40, 0.3, 2)
    found = run(
        "drift", dark, bundle, "--reference", out / "reference.json", "--out", tmp_path / "later", "--json"
    )
    assert found.exit_code == 1
    assert "brightness" in json.loads(found.output)["drifted"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path, data: Path):
    bundle = write_files(tmp_path / "bundle", bundle_files())
    same = pictures(tmp_path / "same", 30, 0.6, 1)
    reference = tmp_path / "reference.json"
    reference.write_text(json.dumps({"data": "x", "model": "y", "pictures": [], "kind": "detrkit observations"}))
    cases = [
        (("drift", tmp_path / "none", bundle), 2, "no folder"),
        (("drift", same, bundle, "--data", data, "--reference", reference), 2, "give one of them"),
        (("drift", same, bundle, "--reference", reference), 2, "another model"),
        (("drift", same, bundle, "--reference", tmp_path / "none.json"), 1, "no reference"),
        (("drift", same, bundle), 2, "--data"),
    ]
    for words, code, fact in cases:
        result = run(*words, "--out", tmp_path / "out")
        assert (result.exit_code, fact in result.output) == (code, True), result.output


def test_lines_without_pictures_are_an_error(tmp_path: Path):
    (tmp_path / "samples.jsonl").write_text('{"file": "a.img"}\n')
    with pytest.raises(DataError, match="no picture"):
        read_samples(tmp_path)
