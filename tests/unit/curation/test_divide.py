"""Parts of a data set written as data sets of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.curation.divide import sample_data, split_data
from detrkit.curation.synthetic import draw_scene, write_synthetic
from detrkit.data.formats import find_splits
from detrkit.data.read import read_split_files
from detrkit.errors import DataError, UsageError
from tests.unit.data.factory import annotation, coco, image_entry

HALVES = {"train": 0.5, "val": 0.5}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve pictures, each also as a darker JPEG copy; annotations with masks and fields of their own."""
    root = tmp_path / "source"
    (root / "train").mkdir(parents=True)
    entries, annotations = [], []
    for number in range(12):
        pixels = draw_scene(np.random.default_rng(number), 64).pixels
        for copy in (0, 1):
            image_id = 2 * number + copy + 1
            name = f"{image_id}.{'jpg' if copy else 'png'}"
            Image.fromarray((pixels * (0.8 if copy else 1)).astype(np.uint8)).save(root / "train" / name)
            entries.append({**image_entry(image_id, name, 64, 64), "license": 3})
            mask = [[5, 6, 25, 6, 25, 16]]
            annotations.append(
                annotation(image_id, image_id, segmentation=mask, category_id=7 if number % 2 else 3)
            )
    (root / "annotations").mkdir()
    content = {**coco(entries, annotations), "licenses": [{"id": 3, "name": "CC0"}]}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def image_ids(path: Path) -> set[int]:
    return {entry["id"] for entry in json.loads(path.read_text(encoding="utf-8"))["images"]}


def test_parts_are_written_with_near_duplicates_together_and_every_field_kept(source: Path, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    result = split_data(source, tmp_path / "out", HALVES, progress=lambda *at: seen.append(at))
    assert (result.groups, result.largest_group, result.notes) == (12, 2, ())
    train = image_ids(result.path / "annotations" / "instances_train.json")
    val = image_ids(result.path / "annotations" / "instances_val.json")
    assert train | val == set(range(1, 25))
    assert not train & val
    assert len(train) == 12
    assert all((2 * number + 1 in train) == (2 * number + 2 in train) for number in range(12))
    content = json.loads((result.path / "annotations" / "instances_val.json").read_text(encoding="utf-8"))
    assert content["licenses"] == [{"id": 3, "name": "CC0"}]
    assert all(entry["license"] == 3 for entry in content["images"])
    assert all(entry["segmentation"] == [[5, 6, 25, 6, 25, 16]] for entry in content["annotations"])
    assert seen[-1] == (48, 48)
    splits = {name: read_split_files(files)[0] for name, files in find_splits(result.path).items()}
    assert {name: len(index) for name, index in splits.items()} == {"train": 12, "val": 12}


def test_without_groups_copies_may_part_and_images_are_linked_or_copied(source: Path, tmp_path: Path):
    for copy in (False, True):
        result = split_data(source, tmp_path / f"out-{copy}", HALVES, group=False, copy=copy)
        written = next((result.path / "val").iterdir())
        original = source / "train" / written.name
        assert written.read_bytes() == original.read_bytes()
        assert (written.stat().st_ino == original.stat().st_ino) == (not copy)
    train = image_ids(result.path / "annotations" / "instances_train.json")
    assert result.groups == 0
    assert any((2 * number + 1 in train) != (2 * number + 2 in train) for number in range(12))


def test_files_that_roboflow_made_from_one_stay_together(tmp_path: Path):
    root = tmp_path / "set"
    (root / "train").mkdir(parents=True)
    entries = []
    for number in range(8):  # different pictures, so that only the names tell
        name = f"street{number // 2}_jpg.rf.{number:032x}.jpg"
        Image.fromarray(draw_scene(np.random.default_rng(number), 64)[0]).save(root / "train" / name)
        entries.append(image_entry(number, name, 64, 64))
    content = coco(entries, [annotation(number, number) for number in range(8)])
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")
    result = split_data(root, tmp_path / "out", HALVES)
    train = image_ids(result.path / "annotations" / "instances_train.json")
    assert result.groups == 4
    assert all((2 * number in train) == (2 * number + 1 in train) for number in range(4))


def test_what_was_asked_wrongly_is_said_before_any_work(source: Path, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for out, options, problem in (
        ("out", {"shares": {"train": 0.5}}, "sum to 0.5"),
        ("full", {"shares": HALVES}, "not empty"),
        ("out", {"shares": HALVES, "split": "test"}, "has no split 'test'; it has train"),
        ("out", {"shares": {"../x": 0.5, "val": 0.5}}, "x"),
    ):
        with pytest.raises(UsageError, match=problem):
            split_data(source, tmp_path / out, **options)
        assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="cannot be divided"):
        split_data(source, tmp_path / "out", {f"part{'x' * n}": 1 / 25 for n in range(25)})


def test_a_sample_takes_from_every_split_in_proportion(tmp_path: Path):
    data = write_synthetic(tmp_path / "data", train_images=30, val_images=10, size=48)
    result = sample_data(data, tmp_path / "out", 12)
    assert [(part.name, part.images) for part in result.parts] == [("train", 9), ("val", 3)]
    index, report = read_split_files(find_splits(result.path)["train"])
    assert report.is_sound
    assert len(np.unique(index.labels)) == 6
    again = sample_data(data, tmp_path / "again", 12)
    name = "annotations/instances_train.json"
    assert (again.path / name).read_bytes() == (result.path / name).read_bytes()
    assert sample_data(data, tmp_path / "one", 3, splits=["validation"]).parts[0].name == "val"
    assert sum(part.images for part in sample_data(data, tmp_path / "all", 99).parts) == 40
    with pytest.raises(UsageError, match="at least one for each of: train, val"):
        sample_data(data, tmp_path / "few", 1)
