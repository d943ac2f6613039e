from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.errors import DataError, UsageError
from detrkit.visual.history import History, differences, read_histories, read_metrics_log
from tests.unit.visual.runs import make_records, make_run


def history(records) -> History:
    return History("run", Path("run"), {}, list(records))


def test_log_without_its_cut_off_last_line_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step"}\n\n{"kind": "eval"}\n{"ki')
    assert [record["kind"] for record in read_metrics_log(path)] == ["step", "eval"]
    path.write_bytes(b'{"kind": "step"}\n{"message": "caf\xc3')  # in the middle of a letter
    assert len(read_metrics_log(path)) == 1
    path.write_text('{"ki\n{"kind": "eval"}\n')
    with pytest.raises(DataError, match="line 1"):
        read_metrics_log(path)
    path.write_text("[]\n")
    with pytest.raises(DataError, match="expected a JSON object"):
        read_metrics_log(path)
    with pytest.raises(DataError, match="cannot read"):
        read_metrics_log(tmp_path / "none.jsonl")


def test_series_leave_out_what_is_undefined_or_not_finite():
    run = history(make_records(20))
    assert len(run.series("APl")) == len(run.series("AR1")) == len(run.series("nothing")) == 0
    assert run.series("AP").x.tolist() == [10, 20]
    assert run.series("AP").y.tolist() == [0.05, 0.1]
    assert len(run.series("layers.class.1")) == 20
    assert len(run.series("layers.class.2")) == 0
    names = ["loss", "loss_class", "lr", "lr_backbone", "grad_norm", "layers.class.1", "layers.class.3"]
    assert run.metrics("step") == names
    assert run.metrics("eval") == ["AP", "AP50", "APl"]
    run = history([{"kind": "step", "step": 1, "loss": -1.0}, {"kind": "eval", "step": 1, "F1": -1.0}])
    assert run.series("loss").y.tolist() == [-1.0], "undefined only of an evaluation"
    assert len(run.series("F1")) == 0


def test_line_that_is_there_twice_counts_once():
    records = [*make_records(5), *make_records(5)]
    assert history(records).series("loss").x.tolist() == [1, 2, 3, 4, 5]


def test_only_what_differs_is_told(tmp_path):
    one = {"train": {"lr": 1e-4, "seed": 1, "freeze": []}, "model": {"name": "a"}}
    two = {"train": {"lr": 1e-4, "seed": 2, "freeze": ["backbone", "encoder"]}, "model": {"name": "a"}}
    runs = [
        make_run(tmp_path / "one", config=one),
        make_run(tmp_path / "two", config=two),
        make_run(tmp_path / "three"),
    ]
    assert differences(read_histories(runs[:2])) == {
        "train.seed": ["1", "2"],
        "train.freeze": ["none", "backbone, encoder"],
    }
    assert differences(read_histories(runs))["train.seed"] == ["1", "2", "-"]
    assert differences(read_histories(runs[:1])) == {}
    (runs[1] / "config.yaml").write_text("a: [")
    assert read_histories(runs)[1].config == {}, "cannot be read"


def test_what_is_no_run_is_refused_with_advice(tmp_path):
    make_run(tmp_path / "runs" / "a")
    with pytest.raises(UsageError, match=r"not a run folder: it has no metrics.jsonl; did you mean .*runs/a\?"):
        read_histories([tmp_path / "runs"])
    with pytest.raises(UsageError, match="does not exist"):
        read_histories([tmp_path / "none"])
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.yaml").write_text("{}")
    with pytest.raises(UsageError, match="recorded nothing yet"):
        read_histories([new])
