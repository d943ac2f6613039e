"""Every kind of fault, planted in a clean set, is found under its name; the repaired copy is clean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.faults import prepare, run_kind
from detrkit.curation.check import CheckOptions, CheckResult, check_data
from detrkit.data.faults import FAULTS
from tests.support.planting import PLANTERS

PLANTINGS = [(kind, planting) for kind, plantings in PLANTERS.items() for planting in plantings]
NEED_MORE = {"exif_rotated_size": "images that are not square", "masks at hand": "masks"}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CheckResult]:
    from detrkit.curation.synthetic import write_synthetic

    folder = tmp_path_factory.mktemp("clean")
    written = write_synthetic(folder / "shapes", train_images=26, val_images=6, size=96, seed=3)
    copied = prepare(written, folder)
    return copied, check_data(copied)


def test_a_drawn_set_is_clean(shapes: Path):
    result = check_data(shapes)
    assert result.is_clean, result.lines()
    assert result.images_checked == 42
    assert [split.name for split in result.splits] == ["train", "val"]


@pytest.mark.parametrize(("kind", "planting"), PLANTINGS, ids=[f"{k}: {p[0]}" for k, p in PLANTINGS])
def test_planted_faults_are_named_and_repaired(kind, planting, clean, tmp_path):
    outcome = run_kind(*clean, tmp_path, kind, planting, count=3, seed=0)
    if outcome is None:
        assert kind in NEED_MORE or "masks at hand" in planting[0]
        return
    assert (outcome.precision, outcome.recall) == (1, 1)
    assert outcome.others == ()
    assert outcome.left == ()


def test_a_broken_split_does_not_hide_the_named_pictures_of_the_others(shapes: Path, tmp_path: Path):
    pictures, data = tmp_path / "pictures", tmp_path / "data"
    shutil.copytree(shapes, pictures)
    shutil.move(pictures / "annotations", data / "annotations")
    train = next(data.glob("annotations/*train*"))
    train.write_text('{"images": [], "annotations": [], "categories"')
    result = check_data(data, CheckOptions(image_folder=pictures))
    assert [split.name for split in result.splits] == ["val"]
    assert result.images_checked == 12
    assert (result.count("annotations_unreadable"), result.count("images_not_found")) == (1, 0)


@pytest.mark.parametrize(("name", "count"), [("val", 1), ("test", 0)])
def test_a_split_without_annotations_is_not_clean_unless_it_is_for_tests(
    name: str, count: int, shapes: Path, tmp_path: Path
):
    data = Path(shutil.copytree(shapes, tmp_path / "data"))
    (file,) = data.glob("annotations/*val*")
    content = json.loads(file.read_text())
    file.with_name(f"instances_{name}2017.json").write_text(json.dumps({**content, "annotations": []}))
    if name == "test":
        (data / "val2017").rename(data / "test2017")
        file.unlink()
    result = check_data(data)
    assert (result.count("split_without_annotations"), result.is_clean) == (count, not count)


def test_every_error_and_warning_can_be_repaired():
    unreadable = {"data_set_unreadable", "images_not_found", "objects_lost", "image_narrow_range"}
    unreadable.add("split_without_annotations")
    for name, fault in FAULTS.items():
        known = fault.fix or fault.severity == "note" or name in unreadable or name.startswith("panoptic_")
        assert known, name


def test_every_kind_is_described_in_the_guide():
    guide = (Path(__file__).parents[4] / "docs" / "checking.md").read_text(encoding="utf-8")
    for name, fault in FAULTS.items():
        assert f"| `{name}` | {fault.title} | {fault.fix or '-'} |" in guide, name
