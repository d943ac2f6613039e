"""A trained model on several data sets and on corrupted images, as ``detrkit eval`` does it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import detrkit
from detrkit.api.generalize import corrupt, generalize
from detrkit.detectors.find import find_target
from detrkit.errors import UsageError
from tests.e2e.conftest import Trained, run_well


def test_clean_and_corrupted_numbers_are_those_of_the_one_evaluator(
    tiny_run: Trained, tiny_data: Path, tmp_path: Path
):
    out = tmp_path / "out"
    found = corrupt(tiny_run.run, corruptions=["contrast", "noise"], severities=[5], out=out, device="cpu")
    plain = detrkit.evaluate(tiny_run.run, tiny_data).metrics.to_dict()
    assert found.clean == {name: plain[name] for name in found.clean}
    assert list(found.cells) == ["gaussian_noise", "shot_noise", "impulse_noise", "contrast"]
    assert found.cells["contrast"][5] != found.clean
    written = json.loads((out / "robustness.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(found.to_dict()))
    assert (out / "robustness.html").stat().st_size > 10_000
    said = []
    again = corrupt(tiny_run.run, corruptions=["contrast"], severities=[5], out=out, device="cpu", say=said.append)
    assert again.cells["contrast"] == found.cells["contrast"]
    assert any("holds 2 of 2 results" in line for line in said)


def test_several_data_sets_with_renamed_classes(tiny_run: Trained, tiny_data: Path, tmp_path: Path):
    renamed = Path(shutil.copytree(tiny_data, tmp_path / tiny_data.name))
    for file in (renamed / "annotations").glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        for category in content["categories"]:
            category["name"] = category["name"].upper()
        file.write_text(json.dumps(content), encoding="utf-8")
    names = find_target(tiny_run.run, device="cpu").class_map.names
    said = []
    with pytest.raises(UsageError, match="none of the data sets has a class 'moon'"):
        generalize(tiny_run.run, [tiny_data, renamed], classes={"moon": names[0]}, device="cpu")
    found = generalize(tiny_run.run, [tiny_data, renamed], device="cpu", say=said.append)
    first, second = found.results
    assert second.name == f"{first.name}-2"
    assert second.shared is None
    assert sum("did you mean" in line for line in said) == len(names)
    mapped = generalize(
        tiny_run.run,
        [tiny_data, renamed],
        classes={name.upper(): name for name in names},
        out=tmp_path / "out",
        device="cpu",
    )
    one, two = mapped.results
    plain = detrkit.evaluate(tiny_run.run, tiny_data)
    assert one.shared is not None
    assert two.shared is not None
    assert one.shared.values == two.shared.values == plain.values
    assert two.match.classes.names == tuple(name.upper() for name in names)
    assert (tmp_path / "out" / "generalization.html").is_file()
    assert json.loads((tmp_path / "out" / "generalization.json").read_text(encoding="utf-8"))["data"]


def test_the_command_line_gives_the_same_numbers(tiny_run: Trained, tiny_data: Path, tmp_path: Path):
    plain = detrkit.evaluate(tiny_run.run, tiny_data)
    several = json.loads(
        run_well("eval", tiny_run.run, "--data", tiny_data, "--data", tiny_data, "--out", tmp_path / "g", "--json")
    )
    assert several == json.loads((tmp_path / "g" / "generalization.json").read_text(encoding="utf-8"))
    assert len(generalize(tiny_run.run, [tiny_data, tiny_data]).results) == 2
    words = ("--corruptions", "contrast, fog", "--severities", "5,1", "--out", tmp_path / "c")
    worse = json.loads(run_well("eval", tiny_run.run, *words, "--json"))
    assert worse == json.loads((tmp_path / "c" / "robustness.json").read_text(encoding="utf-8"))
    assert worse["clean"]["AP"] == plain["AP"]
    said = run_well("eval", tiny_run.run, *words)
    assert "mPC" in said
    assert "robustness.html" in said
