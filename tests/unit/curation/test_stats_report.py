"""The numbers of a data set as tables and as a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.config import TransformConfig
from detrkit.curation.input_sizes import eval_inputs, train_inputs
from detrkit.curation.stats import DatasetStats, dataset_stats
from detrkit.curation.stats_report import write_stats_page
from tests.unit.data.factory import make_index

BOX = (0, 0, 40, 20)


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


def test_the_page_holds_everything_and_no_markup_of_others(splits, stats: DatasetStats, tmp_path: Path):
    html = write_stats_page(tmp_path / "page.html", "set <x>", splits, stats).read_text(encoding="utf-8")
    assert "<b>dog" not in html
    assert "[bold]&lt;b&gt;dog" in html
    assert html.count('<figure class="chart">') == 8
    for title in ("Overview", "Classes", "Boxes", "Images", "At the model&#39;s input"):
        assert f"<h2>{title}</h2>" in html
    assert all(line.split(":")[0] in html for line in stats.advice)
