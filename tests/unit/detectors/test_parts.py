"""Detections in parts: cut, written, taken up again, merged; without Ray, whose workers call the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from detrkit.cli import app
from detrkit.detectors import parts, ray_predict
from detrkit.detectors.bundle import bundle_detector
from detrkit.detectors.detector import Detector
from detrkit.detectors.parts import PictureResult, Plan
from detrkit.detectors.tiles import in_tiles
from detrkit.errors import DataError, UsageError
from tests.support.bundles import bundle_files, noise, write_files


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return bundle_detector(write_files(tmp_path_factory.mktemp("bundle") / "mean", bundle_files()))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(7):
        Image.fromarray(noise((30 + number, 50), number)).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no picture")
    return folder


def plan_of(detector: Detector, sources: list[str], threshold: float = 0.1, size: int = 3) -> Plan:
    return parts.make_plan(detector, sources, threshold, 1, size)


def run(detector: Detector, sources: list[str], out: Path, stop_after: int | None = None) -> list[int]:
    """Write the missing parts, or some of them, and return which these were."""
    plan = plan_of(detector, sources)
    (out / "parts").mkdir(parents=True, exist_ok=True)
    missing = parts.begin(out / "parts", plan)[:stop_after]
    for part in missing:
        rows = [sources[row] for row in plan.rows(part)]
        parts.write_part(out / "parts", part, ray_predict.detect_part(detector, rows, 0.1, 1))
    if stop_after is None:
        parts.merge(out / "parts", plan, sources, out / "predictions.json")
    return missing


def test_parts_hold_what_predict_finds_and_a_broken_picture_is_said(
    detector: Detector, pictures: Path, tmp_path: Path
):
    sources = ray_predict.list_pictures(str(pictures), print)
    run(detector, sources, tmp_path)
    merged = json.loads((tmp_path / "predictions.json").read_text())
    errors: list[str] = []
    plain = list(detector.stream(str(pictures), 0.1, 1, lambda name, error: errors.append(str(error))))
    expected = [entry for item in plain for entry in ray_predict.to_coco(item.detections)]
    assert merged == expected
    assert len(expected) == 12
    again = parts.merge(tmp_path / "parts", plan_of(detector, sources), sources, tmp_path / "again.json")
    assert (again.pictures, again.objects, again.failures) == (6, 12, errors)
    assert "3.png" in errors[0]


def test_what_was_killed_goes_on_and_ends_the_same_to_the_last_byte(
    detector: Detector, pictures: Path, tmp_path: Path
):
    sources = ray_predict.list_pictures(str(pictures), print)
    assert run(detector, sources, tmp_path / "whole") == [0, 1, 2]
    assert run(detector, sources, tmp_path / "killed", stop_after=1) == [0]
    (tmp_path / "killed" / "parts" / ".0123456789abcdef0123456789abcdef.tmp").write_bytes(b"half a pa")
    assert run(detector, sources, tmp_path / "killed") == [1, 2]
    assert run(detector, sources, tmp_path / "killed") == []
    for name in ("predictions.json", "parts/part-000000.jsonl", "parts/part-000002.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_model_list_or_threshold_is_refused_by_name(detector: Detector, pictures: Path, tmp_path: Path):
    sources = ray_predict.list_pictures(str(pictures), print)
    run(detector, sources, tmp_path, stop_after=1)
    folder = tmp_path / "parts"
    other = bundle_detector(write_files(tmp_path / "other", bundle_files(max_detections=7)))
    other.settings += "other"
    changed = {
        "model": plan_of(other, sources),
        "threshold": plan_of(detector, sources, 0.2),
        "part_size": plan_of(detector, sources, size=2),
        "pictures, names": plan_of(detector, sources[1:]),
    }
    Path(sources[0]).write_bytes(b"another picture of the same name")
    assert plan_of(in_tiles(detector, 32), sources).model != plan_of(detector, sources).model
    changed["names"] = plan_of(detector, sources)
    for what, plan in changed.items():
        with pytest.raises(UsageError, match=rf"other detections: {what} changed"):
            parts.begin(folder, plan)


def test_a_part_that_was_touched_is_neither_taken_nor_replaced(detector: Detector, pictures: Path, tmp_path: Path):
    sources = ray_predict.list_pictures(str(pictures), print)
    run(detector, sources, tmp_path, stop_after=2)
    part = tmp_path / "parts" / "part-000001.jsonl"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(UsageError, match="part-000001"):
        run(detector, sources, tmp_path)


@pytest.mark.parametrize("wrong", [["a", "a", "c"], ["a", "b"], ["b", "a", "c"]])
def test_merge_wants_each_picture_exactly_once(wrong: list[str], tmp_path: Path):
    plan = Plan(parts.KIND, 1, "", 0.5, 1, 3, "", 3)
    parts.write_part(tmp_path, 0, [PictureResult(name) for name in wrong])
    with pytest.raises(DataError, match="part-000000"):
        parts.merge(tmp_path, plan, ["a", "b", "c"], tmp_path / "predictions.json")
    assert not (tmp_path / "predictions.json").exists()


def test_lists_and_addresses_name_pictures_once(detector: Detector, pictures: Path, tmp_path: Path):
    pytest.importorskip("pyarrow")
    said: list[str] = []
    lines = tmp_path / "list.txt"
    address = f"file://{pictures}"
    lines.write_text(f"{pictures}/0.png\n\n{pictures}/./0.png\n{address}/1.png\n{pictures}\n{address}/none.png\n")
    found = ray_predict.list_pictures(str(lines), said.append)
    assert found == [f"{pictures}/0.png", f"{address}/1.png", str(pictures), f"{address}/none.png"]
    assert "1 line" in said[0]
    results = ray_predict.detect_part(detector, found, 0.1, 1)
    assert [result.source for result in results] == found
    assert [bool(result.error) for result in results] == [False, False, True, True]
    assert results[1].detections[0]["file_name"] == f"{address}/1.png"
    assert ray_predict.list_pictures(address, print) == [f"{address}/{number}.png" for number in range(7)]
    for nothing in (str(tmp_path / "absent"), f"file://{tmp_path}/absent"):
        with pytest.raises(UsageError):
            ray_predict.list_pictures(nothing, print)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ray"], "--out"),
        (["--ray", "--out", "out", "another"], "one folder or list"),
        (["--workers", "2", "--out", "out"], "--ray"),
    ],
)
def test_ray_wants_a_place_to_go_on_from_and_one_list(
    words: list[str], said: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    model = write_files(tmp_path / "mean", bundle_files())
    result = CliRunner().invoke(app, ["predict", str(model), str(pictures), *words])
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "out").exists()
