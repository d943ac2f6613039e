"""Small COCO sets with one thing odd about the whole file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from detrkit.cli import app
from detrkit.config import Config
from detrkit.data.formats import find_split
from detrkit.data.read import read_split_files
from detrkit.data.split import read_split
from detrkit.errors import DataError


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_roboflows_file_is_found_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "train" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
        "categories": [{"id": 1, "name": "Dose"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9], "area": 81, "iscrowd": 0}
        ],
    }
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(content), encoding=encoding)
    assert len(read_split_files(find_split(tmp_path, "train"))[0].labels) == 1


@pytest.mark.parametrize(("named", "is_sound"), [((0, 1), False), ((1, 2), True), ((0, 2), True)])
def test_categories_one_less_than_listed_are_refused(
    tmp_path: Path, named: tuple[int, int], is_sound: bool
) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "train" / "a.png")
    boxes = [
        {"id": at, "image_id": 1, "category_id": one, "bbox": [at, 2, 9, 9]} for at, one in enumerate(named, 1)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
        "categories": [{"id": 1, "name": "box"}, {"id": 2, "name": "ball"}],
        "annotations": [{**box, "area": 81, "iscrowd": 0} for box in boxes],
    }
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    if is_sound:
        assert read_split_files(find_split(tmp_path, "train"), may_lose=True)[1].ledger.id_shift == 0
        return
    with pytest.raises(DataError, match="one too low: every class is another"):
        read_split(Config(), "train", tmp_path)
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path), "--fix", str(tmp_path / "fixed")])
    assert result.exit_code == 1
    assert "is not fit for training" in result.output or "one too low" in result.output
