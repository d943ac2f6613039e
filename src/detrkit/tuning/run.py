"""A search from start to end, or from where it was stopped."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.config import Config
from detrkit.data.split import read_split
from detrkit.errors import UsageError
from detrkit.tuning.page import write_study_page
from detrkit.tuning.results import StudyResult, best_config, read_trials, write_results
from detrkit.tuning.settings import Pruner, Settings
from detrkit.tuning.space import default_space, read_space
from detrkit.tuning.study import (
    Place,
    begin_study,
    find_place,
    import_optuna,
    open_study,
    read_settings,
    total_trials,
)
from detrkit.tuning.trial import Train, train_trial
from detrkit.tuning.work import WorkEnd, wait_for_others, work_here, work_in_parallel

if TYPE_CHECKING:
    import optuna

Say = Callable[[str], None]

DEFAULT_TRIALS = 20


def run_tuning(
    config: Config | None,
    out: Path,
    *,
    trials: int | None = None,
    space: Path | None = None,
    pruner: Pruner | None = None,
    storage: str | None = None,
    study_name: str | None = None,
    workers: int = 1,
    say: Say = print,
    train: Train = train_trial,
) -> StudyResult:
    """Search, and write what was found; what a former call has finished is not done again.

    Args:
        config: Of the training to be tuned; None to go on with a study as it was begun.
        out: Folder of the study.
        trials: How many the study is to have in all.
        space: YAML file of what is searched.
        pruner: How hopeless trials are ended early; median if not given.
        storage: Address of a database, for several machines; ``study.db`` in ``out`` if not given.
        study_name: Name in that database; that of ``out`` if not given.
        workers: Processes on this machine.
        say: Told what happens.
        train: Trains a trial; another in tests.

    Raises:
        UsageError: Something is asked wrongly, or differs from what the study was begun with.
        TrainingError: The first trials all failed, or a worker died.
    """
    import_optuna()
    since = datetime.datetime.now()
    if config is not None:
        _check_config(config, out)
    elif not (out / "study.json").is_file() and storage is None:
        raise UsageError(f"{out} holds no study to go on with; begin one with --model and --data")
    place = find_place(out, storage, study_name)
    with place.lock():
        study = open_study(place)
        settings = _agreed(study, config, space, pruner, place, say)
        total = total_trials(study, trials, DEFAULT_TRIALS)
    _say_beginning(study, settings, place, total, say)
    end = _work(study, settings, place, since, workers, say, train)
    results = read_trials(study, place)
    found = best_config(settings, results)
    result = StudyResult(out, results, total, found, end.stopped, end.signal_number)
    write_results(out, found, results)
    write_study_page(out / "tune.html", study, settings, result)
    return result


def _agreed(
    study: optuna.Study, config: Config | None, space: Path | None, pruner: Pruner | None, place: Place, say: Say
) -> Settings:
    """The settings of the study; what the call says of them must not contradict it, and need not be said again."""
    noted = read_settings(study)
    if noted is None:
        if config is None:
            raise UsageError(f"the study {place.name!r} has not begun; begin it with --model and --data")
        images = _count_images(config)
        found = read_space(space, config) if space is not None else default_space(config, _steps(config, images))
        settings = Settings(config, found, pruner or "median", images)
        for line in begin_study(study, settings):
            say(line)
        return settings
    config = config or noted.config
    found = read_space(space, config) if space is not None else noted.space
    asked = Settings(config, found, pruner or noted.pruner, noted.images)
    differences = noted.differences(asked) or noted.different_data(_count_images(config))
    if differences:
        more = f"; and {len(differences) - 6} more" if len(differences) > 6 else ""
        raise UsageError(
            f"the study of {place.out} was begun otherwise: {'; '.join(differences[:6])}{more}. Trials would not "
            f"be comparable: give another --out, or go on as it was begun with: detrkit tune --out {place.out}"
        )
    return noted


def _count_images(config: Config) -> dict[str, int]:
    """By which a data set is known again; reading it also finds its faults before the first trial does."""
    train = read_split(config, config.data.train_split).index
    val = read_split(config, config.data.val_split, strict=True).index
    return {
        "training images": len(train),
        "training objects": len(train.labels),
        "validation images": len(val),
        "validation objects": len(val.labels),
    }


def _steps(config: Config, images: Mapping[str, int]) -> int:
    """Optimiser steps of a trial."""
    train = config.train
    return train.epochs * -(-images["training images"] // (train.batch_size * train.accumulate))


def _check_config(config: Config, out: Path) -> None:
    """What a trial cannot have."""
    if config.data.root is None and config.data.train_annotations is None:
        raise UsageError(
            f"no data given; give the folder of a data set (--data DATA), or an --out with a study ({out})"
        )
    if config.train.devices * config.train.num_nodes > 1:
        raise UsageError(
            f"train.devices is {config.train.devices} and train.num_nodes {config.train.num_nodes}; a trial is "
            "one process on one device: leave both at 1, and give --workers for trials side by side"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("tune is not for torchrun; give --workers, and the same --storage on every machine")


def _say_beginning(study: optuna.Study, settings: Settings, place: Place, total: int, say: Say) -> None:
    states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
    finished = sum(state in ("COMPLETE", "PRUNED", "FAIL") for state in states)
    begun = f"; {finished} are finished" if finished else ""
    began = states.count("RUNNING")
    begun += f", {began} begun" if began else ""
    train = settings.config.train
    say(f"{place.out}: {total} trials of {settings.config.model.preset}, {train.epochs} epochs each{begun}")
    say(f"searched: {', '.join(part.name for part in settings.space.dimensions)}")


def _work(
    study: optuna.Study,
    settings: Settings,
    place: Place,
    since: datetime.datetime,
    workers: int,
    say: Say,
    train: Train,
) -> WorkEnd:
    """Until every trial is done, here or elsewhere."""
    while True:
        if workers > 1:
            end = work_in_parallel(study, settings, place, since, workers, say)
        else:
            end = work_here(study, settings, place, since, say, train=train)
        if end.stopped == "interrupted":
            return end
        waited = wait_for_others(study, place, say)
        if waited is not None:
            return waited
