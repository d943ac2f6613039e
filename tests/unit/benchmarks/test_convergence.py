"""The harness of convergence: budgets, data sets, runs that are not made twice, tables and curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.convergence import __main__ as harness
from benchmarks.convergence.competitors import Conditions, config_of
from benchmarks.convergence.data_sets import Files, find_data
from benchmarks.convergence.recipes import RECIPES, Recipe

pytestmark = pytest.mark.slow

REAL_RECIPES = dict(RECIPES)
QUICK = ("--quick", "--recipes", "plain,fast", "--device", "cpu", "--threads", "1")


@pytest.fixture(autouse=True)
def _small_recipes(monkeypatch: pytest.MonkeyPatch):
    """Recipes of the tests' own, so that the table can be edited freely."""
    small = {"model.decoder_layers": 1, "model.num_queries": 5, "train.batch_size": 4}
    for name in list(RECIPES):
        monkeypatch.delitem(RECIPES, name)
    monkeypatch.setitem(RECIPES, "plain", Recipe("detr-tiny", "plain", small))
    monkeypatch.setitem(RECIPES, "fast", Recipe("detr-tiny", "fast", small, against="plain"))


@pytest.fixture
def demo(tmp_path: Path) -> Files:
    return find_data("demo", None, tmp_path / "made", quick=True)


class TestRecipes:
    @pytest.mark.parametrize("name", REAL_RECIPES)
    def test_every_entry_of_the_table_is_a_config(self, demo: Files, name: str, monkeypatch: pytest.MonkeyPatch):
        recipe = REAL_RECIPES[name]
        monkeypatch.setitem(RECIPES, name, recipe)
        config = config_of(name, demo, 3, Conditions(device="cpu", precision="bf16"))
        assert config.model.preset == recipe.preset
        assert config.train.recipe == recipe.recipe
        assert (config.train.seed, config.train.precision) == (3, "bf16")
        seen = demo.size[0 if config.transforms.keep_aspect else 1]
        assert config.transforms.eval_size == recipe.changes.get("transforms.eval_size", seen)
        assert config.transforms.max_size == recipe.changes.get("transforms.max_size", demo.size[1])
        assert recipe.against is None or REAL_RECIPES[recipe.against].preset == recipe.preset


class TestRuns:
    def test_recipes_and_peers_run_and_what_is_complete_is_not_made_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        command = [*QUICK, "--peers", "fcos-mobilenet", "--out", str(tmp_path)]
        assert harness.main(command) == 0
        printed = capsys.readouterr().out
        results = json.loads((tmp_path / "results.json").read_text())["runs"]
        assert [result["competitor"] for result in results] == ["fast", "fcos-mobilenet", "plain"]
        for result in results:
            (point,) = result["points"]
            assert point["epoch"] == result["epochs"] == 1
            assert 0 < 60 * point["minutes"] == pytest.approx(result["training_s"])
            assert result["training_s"] < result["total_s"]
            assert result["machine"]["threads"] == 1
            assert "versions" in result["machine"]
            assert (tmp_path / "runs" / result["name"] / "config.yaml").is_file()
        assert (tmp_path / "table.md").read_text().strip() == printed.rpartition("written to")[0].strip()
        with Image.open(tmp_path / "curves.png") as picture:
            assert picture.width > 800

        made = []
        monkeypatch.setattr(harness, "make", lambda job, *_: made.append(job.name) or results[0])
        assert harness.main(command) == 0
        assert made == []
        (tmp_path / "runs" / "demo-fast-s0" / "result.json").unlink()  # as if it had been killed
        assert harness.main(command) == 0
        assert made == ["demo-fast-s0"]

        monkeypatch.setitem(RECIPES, "plain", Recipe("detr-tiny", "plain", {"train.lr": 3e-3}))
        assert harness.main(command) == 2
        assert "train.lr" in capsys.readouterr().err
        made.clear()
        assert harness.main([*command, "--redo"]) == 0
        assert made == ["demo-plain-s0", "demo-fast-s0", "demo-fcos-mobilenet-s0"]
