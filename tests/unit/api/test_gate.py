"""``detrkit.gate`` on detections with known faults."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import detrkit
from detrkit.cli import app
from detrkit.comparison.release_gate import GateCheck, GateResult, GateRule, check_comparison
from detrkit.errors import UsageError
from detrkit.latency import Latency, Percentiles
from tests.unit.comparison.contenders import write_data, write_found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def models(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "blind": write_found(root / "blind.json", data, without=[3], jitter=1.0, seed=1),
        "good": write_found(root / "good.json", data, jitter=1.0, seed=1),
        "again": write_found(root / "again.json", data, jitter=1.0, seed=7),
    }


def decide(models: dict[str, Path], new: str, old: str | None, data: Path, out: Path, **rule: float) -> GateResult:
    former = None if old is None else models[old]
    return detrkit.gate(models[new], former, data, out=out, resamples=100, max_slowdown=None, **rule)


def test_a_model_that_is_worse_beyond_chance_is_stopped_and_its_class_is_named(models, data, tmp_path):
    found = decide(models, "blind", "good", data, tmp_path)
    assert not found.passed
    assert any("dog" in note for note in found.notes)
    assert decide(models, "good", "blind", data, tmp_path / "2").passed


def test_chance_alone_stops_nothing_until_a_loss_is_to_be_ruled_out(models, data, tmp_path):
    assert decide(models, "again", "good", data, tmp_path).passed
    strict = decide(models, "again", "good", data, tmp_path, max_loss=0.0)
    assert not strict.passed
    assert decide(models, "again", "good", data, tmp_path, max_loss=50.0).passed


def test_a_first_release_needs_its_least_ap(models, data, tmp_path):
    assert decide(models, "good", None, data, tmp_path, min_ap=30.0).passed
    assert not decide(models, "good", None, data, tmp_path, min_ap=99.9).passed
    with pytest.raises(UsageError, match="--min-ap"):
        decide(models, "good", None, data, tmp_path)
    with pytest.raises(UsageError, match="--data"):
        detrkit.gate(models["good"], models["blind"])


def test_too_few_images_to_tell_do_not_pass(models, data, tmp_path):
    comparison = detrkit.compare([models["good"], models["again"]], data, out=tmp_path, resamples=20)
    [pair] = comparison.pairs
    blank = dataclasses.replace(pair, differences=dataclasses.replace(pair.differences, values={}))
    [check], _ = check_comparison(
        "d", dataclasses.replace(comparison, pairs=(blank,)), GateRule(max_slowdown=None)
    )
    assert not check.passed


@pytest.mark.parametrize(
    ("pq", "max_loss", "passed"), [(0.40, 5.0, True), (0.30, 5.0, False), (None, 5.0, False), (0.30, None, True)]
)
def test_masks_and_pq_are_held_by_the_greatest_loss(models, data, tmp_path, pq, max_loss, passed):
    comparison = detrkit.compare([models["good"], models["good"]], data, out=tmp_path, resamples=20)
    old, new = comparison.models
    old = dataclasses.replace(old, masks=old.metrics, panoptic={"PQ": 0.42})
    new = dataclasses.replace(new, masks=new.metrics, panoptic={} if pq is None else {"PQ": pq})
    rule = GateRule(max_loss=max_loss, max_slowdown=None)
    checks, notes = check_comparison("d", dataclasses.replace(comparison, models=(old, new)), rule)
    told = {check.what: check.passed for check in checks}
    assert told == {"AP": True, **({} if max_loss is None else {"mask AP": True, "PQ": passed})}
    assert any("PQ 30.0 points, 42.0 before" in note for note in notes) == (max_loss is None)


@pytest.mark.parametrize(("milliseconds", "passed"), [(109.0, True), (111.0, False), (None, False)])
def test_a_model_that_is_slower_or_cannot_be_timed_is_stopped(models, data, tmp_path, milliseconds, passed):
    comparison = detrkit.compare([models["good"], models["again"]], data, out=tmp_path, resamples=20)

    def timed(time_ms: float | None) -> Latency | None:
        times = None if time_ms is None else Percentiles.of([time_ms])
        return None if times is None else Latency(times, times, times, times, 1, 1, 1, 0, "cpu", 1)

    old, new = comparison.models
    sides = (dataclasses.replace(old, latency=timed(100.0)), dataclasses.replace(new, latency=timed(milliseconds)))
    checks, _ = check_comparison("d", dataclasses.replace(comparison, models=sides), GateRule())
    assert [check.passed for check in checks if check.what == "speed"] == [passed]


def test_markdown_holds_no_foreign_markup():
    check = GateCheck("a|b", "AP", False, "<script>")
    text = GateResult("new", "old", (check,), ("x|y",)).markdown()
    assert "<script>" not in text
    assert "a\\|b" in text


@pytest.mark.parametrize(("new", "code"), [("good", 0), ("blind", 1), ("none.json", 2)])
def test_the_command_exits_by_its_decision(models, data, tmp_path, new, code):
    paths = [str(models.get(name, tmp_path / name)) for name in (new, "again")]
    options = ["--data", str(data), "--out", str(tmp_path / "out"), "--max-slowdown", "-1", "--resamples", "20"]
    written = tmp_path / "gate.md"
    answer = CliRunner().invoke(app, ["gate", *paths, *options, "--json", "--markdown", str(written)])
    assert answer.exit_code == code, answer.output
    if code < 2:
        assert json.loads(answer.stdout)["passed"] is (code == 0)
        assert written.read_text(encoding="utf-8").startswith("### ")
