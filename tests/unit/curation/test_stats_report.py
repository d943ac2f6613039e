"""The numbers of a data set as tables and as a page."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from detrkit.config import TransformConfig
from detrkit.curation.input_sizes import eval_inputs, train_inputs
from detrkit.curation.stats import DatasetStats, dataset_stats
from detrkit.curation.stats_report import (
    classes_table,
    input_methods,
    inputs_table,
    overview_table,
    spreads_table,
    write_stats_page,
)
from tests.unit.data.indexes import labelled, make_index

BOX = (0, 0, 40, 20)


def rendered(table: Table) -> str:
    output = io.StringIO()
    Console(file=output, width=100).print(table)
    return output.getvalue()


@pytest.fixture(scope="module")
def splits():
    train = make_index([[(0, BOX), (1, BOX)], [(0, BOX)], []], names=("cat", "[bold]<b>dog", "fox"))
    val = make_index([[(0, BOX)]], names=("cat", "[bold]<b>dog", "fox"))
    return {"train": train, "val": val}


@pytest.fixture(scope="module")
def stats(splits) -> DatasetStats:
    config = TransformConfig(scales=(100,), eval_size=100, crop=0)
    inputs = {"train": train_inputs(splits["train"], config), "eval": eval_inputs(splits["train"], config)}
    return dataset_stats(splits, inputs, num_queries=100)


def test_tables_hold_the_numbers(stats: DatasetStats):
    overview = rendered(overview_table(stats)).splitlines()
    assert ["objects", "3", "1", "4"] in [line.split() for line in overview]
    assert next(line for line in overview if "without objects" in line).count("(") == 3
    spreads = rendered(spreads_table(stats))
    assert "2.00" in next(line for line in spreads.splitlines() if "box width" in line)
    inputs = rendered(inputs_table(stats))
    assert next(line.split() for line in inputs.splitlines() if "followed" in line)[-2:] == ["3", "3"]
    assert len(input_methods(stats)) == 2


def test_class_names_are_plain_text_in_the_terminal(stats: DatasetStats):
    assert "[bold]<b>dog" in rendered(classes_table(stats))


def test_of_many_classes_both_ends_are_printed():
    index = labelled([[label] * (label + 1) for label in range(40)], num_classes=40)
    text = rendered(classes_table(dataset_stats({"train": index})))
    assert "class 39" in text
    assert "class 0 " in text
    assert "class 20" not in text
    assert "the 12 most frequent and the 12 rarest" in text


def test_the_page_holds_everything_and_no_markup_of_others(splits, stats: DatasetStats, tmp_path: Path):
    html = write_stats_page(tmp_path / "page.html", "set <x>", splits, stats).read_text(encoding="utf-8")
    assert "<b>dog" not in html
    assert "[bold]&lt;b&gt;dog" in html
    assert html.count("<svg ") == 10
    for title in ("Overview", "Classes", "Boxes", "Images", "At the model&#x27;s input"):
        assert f"<h2>{title}</h2>" in html
    assert all(line.split(":")[0] in html for line in stats.advice)


def test_a_page_of_one_split_without_objects_can_be_written(tmp_path: Path):
    splits = {"train": make_index([[], []])}
    html = write_stats_page(tmp_path / "page.html", "empty", splits, dataset_stats(splits)).read_text()
    assert "2 images, 0 objects of 3 classes" in html
