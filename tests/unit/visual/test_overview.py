from __future__ import annotations

import json
from pathlib import Path

import pytest

from detrkit.errors import DataError
from detrkit.visual.overview import plot_runs
from tests.unit.visual.elements import Elements
from tests.unit.visual.runs import make_run


def page_of(path: Path) -> tuple[str, Elements]:
    text = path.read_text(encoding="utf-8")
    return text, Elements(text)


def test_page_of_one_run_has_its_curves_and_numbers(tmp_path):
    run = make_run(tmp_path / "one")
    drawn = plot_runs([run], tmp_path / "curves.html")
    _, page = page_of(drawn.path)
    (summary,) = drawn.runs
    assert (summary.steps, summary.epochs, summary.best_epoch) == (40, 4, 4)
    assert summary.best_ap == pytest.approx(0.2)
    assert page.every("class").count("chart") == 6
    tips = page.every("data-tip")
    assert {f"step {10 * n}\nAP: {5 * n}\nAP50: {8 * n}" for n in range(1, 5)} <= set(tips)
    assert {"AP", "backbone", "layer 1", "layer 3"} <= set(page.every("data-name"))


def test_page_of_several_runs_says_what_differs_and_lets_each_be_switched_off(tmp_path):
    runs = [make_run(tmp_path / name, config={"train": {"lr": lr}}) for name, lr in (("one", 0.5), ("two", 0.25))]
    drawn = plot_runs(runs, tmp_path / "curves.html", across="epoch")
    assert drawn.differences == {"train.lr": ["0.5", "0.25"]}
    text, page = page_of(drawn.path)
    assert ">train.lr</th>" in text
    assert set(page.every("data-name", "button")) == {"one", "two"}
    json.dumps(drawn.to_dict())


def test_nothing_in_a_name_can_act(tmp_path):
    evil = '</script><img src=x onerror=alert(1)> "&$x$'
    run = make_run(tmp_path / evil.replace("/", "_"), config={"model": {"a": evil}})
    other = make_run(tmp_path / "other", config={"model": {"a": "<b>"}})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "eval", "step": 41, "epoch": 5, "</script><i>": 1.0}) + "\n")
    text, page = page_of(plot_runs([run, other], tmp_path / "curves.html").path)
    assert not any(tag in ("img", "b", "i") and not given for tag, given in page.found)
    assert text.count("</script>") == 1
    plot_runs([run, other], tmp_path / "curves.png")


def test_nothing_recorded_yet_is_said(tmp_path):
    run = make_run(tmp_path / "one", steps=0)
    with pytest.raises(DataError, match="nothing is recorded yet"):
        plot_runs([run], tmp_path / "curves.html")
    plot_runs([run, make_run(tmp_path / "two", steps=3)], tmp_path / "curves.html")
