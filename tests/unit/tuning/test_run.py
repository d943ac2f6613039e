"""Searches with played trainings: what is done once, what goes on, what ends them."""

from __future__ import annotations

import csv
import json
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from detrkit.config import Config, read_config, update_config
from detrkit.errors import NonFiniteError, TrainingError, UsageError
from detrkit.tuning.run import run_tuning
from detrkit.tuning.study import StudyLocation, open_study, retry_dead_trials, study_lock
from tests.unit.tuning.conftest import Played


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plots take longer than everything else here; test_page.py looks at it."""
    monkeypatch.setattr("detrkit.tuning.run.write_study_page", lambda path, *_parts: path)


def quiet(_message: str) -> None: ...


def by_rate(config: Config, epoch: int) -> float:
    """Best at a learning rate of 1e-3, and better each epoch."""
    return 0.1 * epoch / (1 + abs(config.train.lr - 1e-3) * 1000)


def study_of(out: Path):
    return open_study(StudyLocation(out, None, out.name))


class PowerCut(BaseException):
    """What no handler sees."""


def raising(error: BaseException, at: tuple[int, int]) -> Callable[[int, int], None]:
    def before(number: int, epoch: int) -> None:
        if (number, epoch) == at:
            raise error

    return before


def test_trials_are_counted_and_none_is_repeated(config: Config, tmp_path: Path):
    out = tmp_path / "study"
    played = Played(by_rate)
    result = run_tuning(config, out, trials=4, say=quiet, train=played)
    assert played.numbers == [0, 1, 2, 3]
    assert result.stopped == "finished"
    assert played.configs[0][1] == config  # the config's own values come first
    before = [(trial.values, trial.datetime_complete) for trial in study_of(out).trials]
    again = Played(by_rate)
    assert run_tuning(None, out, say=quiet, train=again).trials == result.trials
    assert again.numbers == []
    assert run_tuning(None, out, trials=6, say=quiet, train=again).total == 6
    assert again.numbers == [4, 5]
    assert [(trial.values, trial.datetime_complete) for trial in study_of(out).trials][:4] == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), PowerCut()], ids=["interrupted", "killed"])
def test_a_trial_that_was_stopped_goes_on_under_its_number(config: Config, tmp_path: Path, error: BaseException):
    out = tmp_path / "study"
    played = Played(by_rate, raising(error, at=(1, 3)))
    if isinstance(error, KeyboardInterrupt):
        assert run_tuning(config, out, trials=3, pruner="none", say=quiet, train=played).stopped == "interrupted"
    else:
        with pytest.raises(PowerCut):
            run_tuning(config, out, trials=3, pruner="none", say=quiet, train=played)
    again = Played(by_rate)
    result = run_tuning(None, out, say=quiet, train=again)
    assert again.numbers == [1, 2]
    assert again.configs[0] == played.configs[1]
    assert [(trial.number, trial.state, trial.run_dir.name) for trial in result.trials] == [
        (number, "complete", f"{number:04d}") for number in range(3)
    ]
    assert set(result.trials[1].curve) == {1, 2, 3}
    assert [trial.state.name for trial in study_of(out).trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert run_tuning(None, out, say=quiet, train=again).trials == result.trials


def test_a_trial_that_kills_its_process_again_and_again_has_failed(config: Config, tmp_path: Path):
    out, deaths = tmp_path / "study", 0
    for _ in range(9):
        try:
            result = run_tuning(
                config, out, trials=2, say=quiet, train=Played(by_rate, raising(PowerCut(), at=(0, 1)))
            )
            break
        except PowerCut:
            deaths += 1
    assert deaths == 6
    assert [trial.state for trial in result.trials] == ["fail", "complete"]
    assert "its process died" in (result.trials[0].reason or "")


@pytest.fixture
def dying(config: Config, tmp_path: Path) -> StudyLocation:
    """A study whose first trial lost its process."""
    out = tmp_path / "study"
    with pytest.raises(PowerCut):
        run_tuning(config, out, say=quiet, train=Played(by_rate, raising(PowerCut(), at=(0, 1))))
    return StudyLocation(out, None, out.name)


def test_a_trial_that_a_process_of_this_machine_trains_is_left_to_it(dying: StudyLocation):
    study = open_study(dying)
    with FileLock(dying.trial_lock(0).lock_file, thread_local=False):
        retry_dead_trials(study, dying)
        assert [trial.state.name for trial in study.trials] == ["RUNNING"]
    retry_dead_trials(study, dying)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]


def test_another_machines_trial_is_dead_only_without_heartbeat(
    dying: StudyLocation, monkeypatch: pytest.MonkeyPatch
):
    study = open_study(dying)
    study._storage.set_trial_user_attr(study.trials[0]._trial_id, "host", "far away")
    retry_dead_trials(study, dying)
    assert [trial.state.name for trial in study.trials] == ["RUNNING"]
    monkeypatch.setattr("detrkit.tuning.study.GRACE_S", 1)
    time.sleep(2.5)  # the database's clock has whole seconds
    study = open_study(dying)
    retry_dead_trials(study, dying)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]


def test_a_study_of_the_earlier_version_goes_on(config: Config, tmp_path: Path):
    """Its running trial has an owner instead of a host, and no heartbeat of Optuna's."""
    out = tmp_path / "study"
    with pytest.raises(PowerCut):
        run_tuning(config, out, trials=2, say=quiet, train=Played(by_rate, raising(PowerCut(), at=(1, 1))))
    with sqlite3.connect(out / "study.db") as database:
        database.execute("delete from trial_heartbeats")
        database.execute("delete from trial_user_attributes where key = 'host'")
    database.close()
    study = study_of(out)
    owner = {"machine": "here/1", "process": 2**22 + 1, "started": 0.0}
    study._storage.set_trial_user_attr(study.trials[1]._trial_id, "owner", owner)
    again = Played(by_rate)
    assert [trial.state for trial in run_tuning(None, out, say=quiet, train=again).trials] == ["complete"] * 2
    assert again.numbers == [1]


def test_processes_with_one_folder_share_the_trials(config: Config, tmp_path: Path):
    """A second one comes while the first is in its second trial, and waits for its end."""
    out = tmp_path / "study"
    other, said = Played(by_rate), list[str]()
    with ThreadPoolExecutor(1) as executor:

        def before(number: int, epoch: int) -> None:
            if (number, epoch) == (1, 2):
                executor.submit(run_tuning, None, out, say=said.append, train=other)
                while "waiting for trials of other processes" not in said:
                    time.sleep(0.05)

        result = run_tuning(config, out, trials=4, say=quiet, train=Played(by_rate, before))
    assert other.numbers == [2, 3]
    assert [trial.state for trial in result.trials] == ["complete"] * 4


def test_a_trial_that_fails_is_noted_and_the_others_go_on(config: Config, tmp_path: Path):
    played = Played(by_rate, raising(NonFiniteError("step 7 is not finite"), at=(1, 2)))
    result = run_tuning(config, tmp_path / "study", trials=3, say=quiet, train=played)
    assert [trial.state for trial in result.trials] == ["complete", "fail", "complete"]
    assert result.trials[1].reason == "step 7 is not finite"
    rows = list(csv.DictReader((tmp_path / "study" / "trials.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["reason"] for row in rows] == ["", "step 7 is not finite", ""]


def test_if_all_of_the_first_fail_the_search_stops(config: Config, tmp_path: Path):
    def before(number: int, epoch: int) -> None:
        raise MemoryError("too much")

    played = Played(by_rate, before)
    with pytest.raises(TrainingError, match="first 3 trials all failed, the last with: out of memory: too much"):
        run_tuning(config, tmp_path / "study", trials=8, say=quiet, train=played)
    assert played.numbers == [0, 1, 2]
    mended = Played(by_rate)
    assert run_tuning(None, tmp_path / "study", say=quiet, train=mended).best is not None
    assert mended.numbers == [3, 4, 5, 6, 7]


def test_hopeless_trials_are_pruned_and_the_last_epoch_is_not(config: Config, tmp_path: Path):
    def worse_and_worse(_config: Config, epoch: int) -> float:
        return 0.5 / (1 + len(played.configs)) * epoch

    played = Played(worse_and_worse)
    result = run_tuning(config, tmp_path / "study", trials=6, say=quiet, train=played)
    assert [trial.state for trial in result.trials] == ["complete"] * 4 + ["pruned"] * 2
    assert result.trials[5].epochs == 1
    kept = Played(worse_and_worse)
    played.configs.clear()
    result = run_tuning(config, tmp_path / "all", trials=6, pruner="none", say=quiet, train=kept)
    assert {trial.state for trial in result.trials} == {"complete"}


def test_only_the_best_keeps_all_its_checkpoints(config: Config, tmp_path: Path):
    def ap(config: Config, epoch: int) -> float:
        return {0: 0.2, 1: 0.4, 2: 0.3}[played.numbers[-1]] * epoch

    played = Played(ap, raising(NonFiniteError("bad"), at=(3, 1)))
    result = run_tuning(config, tmp_path / "s", trials=4, pruner="none", say=quiet, train=played)
    files = [sorted(path.name for path in (trial.run_dir / "checkpoints").iterdir()) for trial in result.trials]
    assert files == [["best.pt"], ["best.pt", "last.pt", "previous.pt"], ["best.pt"], []]


def test_the_best_config_is_ready_to_train(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = Path(config.data.root or "")
    monkeypatch.chdir(root.parent)
    given = update_config(config, {"data.root": root.name})
    played = Played(by_rate)
    result = run_tuning(given, tmp_path / "s", trials=5, say=quiet, train=played)
    assert result.best is not None
    best = read_config(tmp_path / "s" / "best.yaml")
    assert best == dict(played.configs)[result.best.number]
    assert best.data.root == root.name  # as given: no path of this machine
    assert "best.yaml" in json.dumps(result.to_dict())


def test_settings_must_agree_with_the_study(config: Config, tmp_path: Path, few_images: Path):
    out = tmp_path / "study"
    run_tuning(config, out, trials=1, say=quiet, train=Played(by_rate))
    other = update_config(config, {"train.batch_size": 7})
    with pytest.raises(UsageError, match=r"train\.batch_size is 16 in the study, 7 now"):
        run_tuning(other, out, trials=2, say=quiet, train=Played(by_rate))
    with pytest.raises(UsageError, match="pruning is median in the study, none now"):
        run_tuning(None, out, trials=2, pruner="none", say=quiet, train=Played(by_rate))
    space = tmp_path / "space.yaml"
    space.write_text("train.lr: {low: 1e-5, high: 1e-3}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"the search of train\.lr is low .* in the study"):
        run_tuning(config, out, trials=2, space=space, say=quiet, train=Played(by_rate))
    assert len(study_of(out).trials) == 1
    same = Played(by_rate)
    run_tuning(config, out, trials=2, say=quiet, train=same)
    assert same.numbers == [1]


def test_changed_data_is_seen(config: Config, tmp_path: Path):
    from detrkit.curation.synthetic import write_synthetic

    root = write_synthetic(tmp_path / "data", train_images=3, val_images=2, size=32)
    config = update_config(config, {"data.root": str(root)})
    run_tuning(config, tmp_path / "s", trials=1, say=quiet, train=Played(by_rate))
    write_synthetic(root, train_images=4, val_images=2, size=32)
    with pytest.raises(UsageError, match="training images is 3 in the study, 4 now"):
        run_tuning(None, tmp_path / "s", trials=2, say=quiet, train=Played(by_rate))


def test_a_study_that_another_process_was_making_is_gone_on_with(config: Config, tmp_path: Path):
    made = study_lock(tmp_path / "study").lock_file
    (tmp_path / "study" / "study.db").touch()
    with pytest.raises(UsageError, match="not empty and holds no study"):
        run_tuning(config, tmp_path / "study", say=quiet)
    Path(made).touch()  # as while it is at work, or was killed
    assert len(run_tuning(config, tmp_path / "study", trials=1, say=quiet, train=Played(by_rate)).trials) == 1


def test_what_cannot_be_searched_is_refused(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match=r"train\.devices is 2.*start the same command"):
        run_tuning(update_config(config, {"train.devices": 2}), tmp_path / "s", say=quiet)
    with pytest.raises(UsageError, match="no data given"):
        run_tuning(update_config(config, {"data.root": None}), tmp_path / "s", say=quiet)
    with pytest.raises(UsageError, match="holds no study to go on with"):
        run_tuning(None, tmp_path / "s", say=quiet)
    with pytest.raises(UsageError, match="not the address of a database"):
        run_tuning(config, tmp_path / "s", storage="my database", say=quiet)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="not empty and holds no study"):
        run_tuning(config, tmp_path / "full", say=quiet)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="not for torchrun"):
        run_tuning(config, tmp_path / "s", say=quiet)
