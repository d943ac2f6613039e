"""A search from start to end, or from where it was stopped."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.config import Config
from detrkit.data.split import read_split, read_train_split
from detrkit.errors import DataError, UsageError
from detrkit.tuning.page import write_study_page
from detrkit.tuning.results import StudyResult, read_trials, write_results
from detrkit.tuning.settings import Pruner, Settings
from detrkit.tuning.space import default_space, read_space
from detrkit.tuning.study import (
    StudyLocation,
    begin_study,
    find_location,
    import_optuna,
    open_study,
    read_settings,
    study_lock,
)
from detrkit.tuning.trial import Say, Train, Worker, train_trial

if TYPE_CHECKING:
    import optuna

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
    say: Say = print,
    train: Train = train_trial,
) -> StudyResult:
    """Search, and write the results; what a former call has finished is not done again.

    Args:
        config: config of the training to be tuned; None to go on with a study as it was begun.
        out: folder of the study.
        trials: trials that the study is to have in all.
        space: YAML file of what is searched.
        pruner: way in which hopeless trials are ended early; median if not given.
        storage: address of a database, for several machines; ``study.db`` in ``out`` if not given.
        study_name: name in that database; that of ``out`` if not given.
        say: told what happens.
        train: trains a trial; another in tests.

    Raises:
        UsageError: Something is asked wrongly, or differs from what the study was begun with.
        TrainingError: The first trials all failed.
    """
    import_optuna()
    if config is not None:
        _check_config(config, out)
    elif not (out / "study.json").is_file() and storage is None:
        raise UsageError(f"{out} holds no study to go on with; begin one with --model and --data")
    lock = study_lock(out)
    with lock:
        location = find_location(out, storage, study_name)
        study = open_study(location)
        settings = _agreed(study, config, space, pruner, location, say)
        # trials in all: what was asked for last counts
        total = int(trials or study.user_attrs.get("trials") or DEFAULT_TRIALS)
        study.set_user_attr("trials", total)

    # the trials that are left
    states = [trial.state for trial in read_trials(study, location)]
    finished = sum(states.count(state) for state in ("complete", "pruned", "fail"))
    begun = f"; {finished} are finished" if finished else ""
    begun += f", {states.count('running')} begun" if "running" in states else ""
    train_config = settings.config.train
    say(f"{out}: {total} trials of {settings.config.model.preset}, {train_config.epochs} epochs each{begun}")
    say(f"searched: {', '.join(part.name for part in settings.space.dimensions)}")
    signal_number = Worker(study, settings, location, total, say, train).work()

    # their results; other processes write the same files
    with lock:
        results = read_trials(study, location)
        result = StudyResult(out, results, total, None, signal_number)
        if result.best is not None:
            best = settings.space.apply(settings.config, result.best.parameters)
            result = dataclasses.replace(result, config=best)
        write_results(result)
        write_study_page(out / "tune.html", study, settings, result)
    return result


def _agreed(
    study: optuna.Study,
    config: Config | None,
    space: Path | None,
    pruner: Pruner | None,
    location: StudyLocation,
    say: Say,
) -> Settings:
    """Return the settings of the study; what the call says of them must not contradict it."""
    noted = read_settings(study)
    if noted is None:
        if config is None:
            raise UsageError(f"the study {location.name!r} has not begun; begin it with --model and --data")
        images = _count_images(config)
        batch = config.train.batch_size * config.train.accumulate
        steps = config.train.epochs * -(-images["training images"] // batch)
        found = read_space(space, config) if space is not None else default_space(config, steps)
        settings = Settings(config, found, pruner or "median", images)
        for line in begin_study(study, settings):
            say(line)
        return settings
    config = config or noted.config
    found = read_space(space, config) if space is not None else noted.space
    differences = noted.differences(Settings(config, found, pruner or noted.pruner, _count_images(config)))
    if differences:
        more = f"; and {len(differences) - 6} more" if len(differences) > 6 else ""
        raise UsageError(
            f"the study of {location.out} was begun otherwise: {'; '.join(differences[:6])}{more}. Trials would "
            "not be comparable: give another --out, or go on as it was begun with: detrkit tune --out "
            f"{location.out}"
        )
    return noted


def _count_images(config: Config) -> dict[str, int]:
    """Count what a data set is known again by; reading it also finds its faults before the first trial does."""
    train = read_train_split(config).index
    val = read_split(config, config.data.val_split, strict=True).index
    if not val.object_counts().any():
        raise DataError(f"{config.data.val_split} has no object to find: trials could not be compared by their AP")
    return {
        "training images": len(train),
        "training objects": len(train.labels),
        "validation images": len(val),
        "validation objects": len(val.labels),
    }


def _check_config(config: Config, out: Path) -> None:
    """Refuse what a trial cannot have."""
    if config.data.root is None and config.data.train_annotations is None:
        raise UsageError(
            f"no data given; give the folder of a data set (--data DATA), or an --out with a study ({out})"
        )
    if config.train.devices * config.train.num_nodes > 1:
        raise UsageError(
            f"train.devices is {config.train.devices} and train.num_nodes {config.train.num_nodes}; a trial is "
            "one process on one device: leave both at 1, and start the same command several times for more at once"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("tune is not for torchrun; start the same command several times for trials side by side")
