from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from detrkit.errors import DataError, UsageError
from detrkit.robustness.pages import write_robustness
from detrkit.robustness.study import evaluate_corruptions
from tests.unit.data.factory import make_index
from tests.unit.robustness.studies import OracleSubject, split_of

BOX = (10.0, 10.0, 60.0, 60.0)
INDEX = make_index([[(row % 3, BOX)] for row in range(18)])
CELLS = ["clean", "fog 1", "fog 5", "jpeg 1", "jpeg 5"]


def test_ap_falls_with_severity_and_means_are_those_of_the_paper():
    subject = OracleSubject(INDEX)
    told = []
    found = evaluate_corruptions(
        subject, split_of(INDEX), ["fog", "jpeg"], [5, 1, 5], progress=lambda done, of: told.append((done, of))
    )
    assert subject.asked == CELLS
    assert found.severities == (1, 5)
    assert found.clean["AP"] == pytest.approx(1)
    one, five = found.cells["fog"][1]["AP"], found.cells["fog"][5]["AP"]
    assert one is not None
    assert five is not None
    assert 1 > one > five > 0
    assert found.mean("fog") == pytest.approx((one + five) / 2)
    assert found.mpc() == pytest.approx((one + five) / 2)  # the fake falls alike under both
    assert found.rpc() == found.mpc()
    assert found.clean["APs"] is None
    assert found.mpc("APs") is None
    assert told[-1] == (90, 90)
    assert sorted(told) == told
    assert [row[:2] for row in found.table().rows] == [["fog", "weather"], ["jpeg", "digital"]]
    assert found.table().rows[0][2:] == [one, five, found.mean("fog"), found.rpc()]
    assert "mPC" in found.lines()[-1]


def test_a_study_that_was_killed_goes_on_with_what_is_missing(tmp_path: Path):
    journal = tmp_path / "robustness.jsonl"
    split = split_of(INDEX)
    whole = evaluate_corruptions(OracleSubject(INDEX), split, ["fog", "jpeg"], [1, 5], journal=journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(CELLS)
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # killed while it wrote the third result
    again, said = OracleSubject(INDEX), []
    rest = evaluate_corruptions(again, split, ["fog", "jpeg"], [1, 5], journal=journal, say=said.append)
    assert again.asked == CELLS[2:]
    assert rest == whole
    assert "holds 2 of 5 results" in said[0]
    assert journal.read_bytes() == b"".join(lines)
    more = OracleSubject(INDEX)
    evaluate_corruptions(more, split, ["fog"], [1, 3], journal=journal)
    assert more.asked == ["fog 3"]


def test_results_of_other_weights_data_or_seed_are_not_mixed(tmp_path: Path):
    journal = tmp_path / "robustness.jsonl"
    subject, split = OracleSubject(INDEX), split_of(INDEX)
    evaluate_corruptions(subject, split, ["fog"], [1], journal=journal)
    with pytest.raises(UsageError, match=r"another study \(other seed\)"):
        evaluate_corruptions(subject, split, ["fog"], [1], seed=1, journal=journal)
    with torch.no_grad():
        subject.stages.network[0].weight += 1
    with pytest.raises(UsageError, match=r"another study \(other weights\)"):
        evaluate_corruptions(subject, split, ["fog"], [1], journal=journal)
    journal.write_text("nonsense\n")
    with pytest.raises(DataError, match="holds no results"):
        evaluate_corruptions(subject, split, ["fog"], [1], journal=journal)


def test_what_is_asked_wrongly_is_said_before_anything_runs():
    subject, split = OracleSubject(INDEX), split_of(INDEX)
    with pytest.raises(UsageError, match="no corruption is called"):
        evaluate_corruptions(subject, split, ["frost"], [1])
    with pytest.raises(UsageError, match="severity is 0"):
        evaluate_corruptions(subject, split, ["fog"], [0])
    with pytest.raises(UsageError, match="at least one of each"):
        evaluate_corruptions(subject, split, ["fog"], [])
    subject.stages = None
    with pytest.raises(UsageError, match="oracle is a file of detections"):
        evaluate_corruptions(subject, split, ["fog"], [1])
    assert subject.asked == []


def test_the_page_shows_every_corruption_and_escapes_names(tmp_path: Path):
    subject = OracleSubject(INDEX, name="<script>alert(1)</script>")
    found = evaluate_corruptions(subject, split_of(INDEX), ["fog", "jpeg"], [1, 5])
    image = torch.randint(0, 256, (3, 40, 600), dtype=torch.uint8)
    write_robustness(tmp_path / "page.html", found, image)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert page.count("data:image/jpeg") == 2
    assert page.count('class="chart"') == 3  # the kinds, weather, digital
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["corruptions"][0]["name"] == "fog"


def test_a_data_set_without_objects_has_no_numbers_and_yet_a_page(tmp_path: Path):
    empty = make_index([[], []])
    found = evaluate_corruptions(OracleSubject(empty), split_of(empty), ["fog"], [1])
    assert found.clean["AP"] is None
    assert found.mpc() is None
    assert found.rpc() is None
    write_robustness(tmp_path / "page.html", found, None)
    assert "fog" in (tmp_path / "page.html").read_text(encoding="utf-8")
