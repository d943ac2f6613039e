"""``detrkit data check`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import run_here, run_well


@pytest.fixture
def faulty(tiny_data: Path, copy_of) -> Path:
    """Two errors and a warning."""
    root: Path = copy_of(tiny_data)
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [500, 3, 20, 20]
    content["annotations"].append({**content["annotations"][1], "id": 9000})
    path.write_text(json.dumps(content))
    image = root / "train2017" / content["images"][-1]["file_name"]
    image.write_bytes(image.read_bytes()[:600])
    return root


def test_a_clean_set_ends_with_zero_and_warnings_with_one_only_if_strict(tiny_data, copy_of):
    out = run_well("data", "check", tiny_data, "--strict")
    assert "train: COCO 2017" in out
    assert "Clean: 0 kinds of error, 0 kinds of warning" in out
    root = copy_of(tiny_data)
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"].append({**content["annotations"][1], "id": 9000})
    path.write_text(json.dumps(content))
    assert run_here("data", "check", root).exit_code == 0
    assert run_here("data", "check", root, "--strict").exit_code == 1


def test_json_is_all_that_is_printed(faulty):
    assert "Not clean: 2 kinds" in run_here("data", "check", faulty).stdout
    result = run_here("data", "check", faulty, "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["schema_version"] == 1
    assert content["clean"] is False
    assert content["worst"] == "error"
    found = {finding["kind"]: finding for finding in content["findings"]}
    assert found["image_truncated"]["count"] == 1
    assert found["box_outside"]["severity"] == "error"
    assert found["duplicate_boxes"]["counts"] == {"train": 1}
    assert found["duplicate_boxes"]["fixable"] is True
    assert content["images_checked"] == 32


def test_the_repaired_copy_is_clean_and_lists_its_changes(faulty, tmp_path):
    out, page = tmp_path / "fixed", tmp_path / "check.html"
    printed = run_well("data", "check", faulty, "--fix", out, "--html", page)
    assert f"{out}/changes.txt" in printed.replace("\n", "")
    assert "The copy: Clean" in printed
    assert page.stat().st_size > 10_000
    run_well("data", "check", out, "--strict")
    repaired = json.loads((out / "changes.json").read_text())["repaired"]
    assert {one["kind"] for one in repaired} == {"image_truncated", "box_outside", "duplicate_boxes"}
    assert "train: 1 of " in printed


def test_a_cut_off_file_hides_no_other_split_and_the_copy_without_it_is_not_fit(tiny_data, copy_of, tmp_path):
    root = copy_of(tiny_data)
    path = root / "annotations" / "instances_val2017.json"
    path.write_bytes(path.read_bytes()[:-300])
    result = run_here("data", "check", root, "--json", "--fix", tmp_path / "fixed")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert [split["name"] for split in content["splits"]] == ["train"]
    (finding,) = [one for one in content["findings"] if one["severity"] == "error"]
    assert finding["kind"] == "annotations_unreadable"
    assert "at byte" in finding["examples"][0]
    assert content["fix"]["unfit"] == ["val cannot be read"]
    assert content["fix"]["clean"] is False
    assert "not fit for training: val cannot be read" in result.stderr
    assert (tmp_path / "fixed" / "annotations" / "instances_train.json").is_file()
