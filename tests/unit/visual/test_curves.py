from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.errors import UsageError
from detrkit.visual.curves import build_charts, plot_curves
from detrkit.visual.history import History
from tests.unit.visual.runs import make_records


def run(name: str = "one", steps: int = 40, **options) -> History:
    return History(name, Path(name), {}, list(make_records(steps, **options)))


def titles(charts) -> dict[str, list[str]]:
    return {chart.title: [line.name for line in chart.lines] for chart in charts}


def test_one_run_shows_what_belongs_together_in_one_chart():
    charts = build_charts([run()])
    assert titles(charts) == {
        "Loss, weighted sum of terms and layers": ["loss"],
        "Loss class": ["loss_class"],
        "AP, %": ["AP", "AP50"],
        "Learning rate": ["model", "backbone"],
        "Gradient norm before clipping": ["all"],
        "Loss class of each layer": ["layer 1", "layer 3"],
    }
    groups = ["Losses", "Losses", "Evaluation", "Optimiser", "Optimiser", "Losses by decoder layer"]
    assert [chart.group for chart in charts] == groups
    assert [chart.legend for chart in charts] == [False, False, True, True, False, True]


def test_several_runs_share_every_chart_in_the_same_colours():
    charts = build_charts([run("one", evaluated=False), run("two")])
    assert titles(charts)["Loss class"] == ["one", "two"]
    assert titles(charts)["AP50, %"] == ["two"]
    assert not any(title.endswith("of each layer") for title in titles(charts))
    assert {line.number for chart in charts for line in chart.lines if line.name == "two"} == {1}
    assert not any(chart.legend for chart in charts)


def test_only_what_is_asked_for_is_drawn():
    assert list(titles(build_charts([run()], metrics=["AP50", "lr_backbone"]))) == [
        "AP50, %",
        "Learning rate of backbone",
    ]
    assert titles(build_charts([run()], metrics=["layers.class"])) == {
        "Loss class of each layer": ["layer 1", "layer 3"]
    }
    assert list(titles(build_charts([run("one"), run("two")], metrics=["layers.class"]))) == [
        "Loss class of layer 1",
        "Loss class of layer 3",
    ]
    with pytest.raises(UsageError, match="no run has a metric los; did you mean loss"):
        build_charts([run()], metrics=["los"])


def test_time_needs_to_have_been_recorded():
    (chart,) = build_charts([run()], metrics=["loss"], across="time")
    assert chart.x_label == "hours of training"
    assert chart.lines[0].series.x[-1] == pytest.approx(40 / 60)
    with pytest.raises(UsageError, match="no times are recorded in old"):
        build_charts([run(), run("old", timed=False)], across="time")


def test_a_wild_first_step_does_not_flatten_the_rest():
    records = list(make_records(400))
    records[0]["loss"] = 1e6
    (chart,) = build_charts([History("one", Path(), {}, records)], metrics=["loss"], smooth=0)
    assert chart.limits()[1][1] < 10


@pytest.mark.parametrize(("steps", "evaluated"), [(0, False), (100, False), (400, True)])
def test_curves_are_drawn_from_any_part_of_a_run(steps, evaluated, tmp_path):
    foreign = [{"kind": "eval", "step": 5, "AP": None}, {"kind": "eval", "step": 6, "epoch": 6, "AP": -1}]
    foreign += [{"kind": "step", "step": 101, "loss": float("nan")}, {"kind": "note"}, {}]
    path = plot_curves([*make_records(steps, evaluated=evaluated), *foreign], tmp_path / "curves.png")
    assert np.asarray(Image.open(path)).shape[1] > 1000
