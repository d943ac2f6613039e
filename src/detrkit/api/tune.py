"""The verbs of this room as Python calls; public as ``detrkit.tune`` and ``detrkit.lr_range``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detrkit.config import DEFAULT_PRESET, Config
from detrkit.families.recipes import resolve_config
from detrkit.tuning.lr_range import LrRange, run_lr_range
from detrkit.tuning.results import StudyResult
from detrkit.tuning.run import run_tuning
from detrkit.tuning.settings import Pruner

Source = str | os.PathLike[str]
Say = Callable[[str], None]


def tune(
    model: str | None = None,
    data: Source | None = None,
    *,
    config: str | Path | None = None,
    init: Source | None = None,
    epochs: int | None = None,
    changes: Mapping[str, Any] | None = None,
    out: Source = "tune",
    trials: int | None = None,
    space: Source | None = None,
    pruner: Pruner | None = None,
    storage: str | None = None,
    study: str | None = None,
    workers: int = 1,
    say: Say = print,
) -> StudyResult:
    """Search for the settings of a training by many short ones; goes on where a former call was stopped.

    Args:
        model: Preset to train; ``detr-r50`` if not given.
        data: Folder of the data set, in any layout that is read.
        config: YAML file over the preset; the arguments here go over both.
        init: Starting weights of every trial, as for :func:`detrkit.train`.
        epochs: Of each trial.
        changes: Any other config values of every trial, dotted.
        out: Folder of the study. To go on with one, nothing else need be given.
        trials: How many the study is to have in all; 20 if not given.
        space: YAML file of config keys and their ranges or choices; what is usual if not given.
        pruner: How hopeless trials are ended early: ``median``, ``hyperband`` or ``none``; median if not given.
        storage: Address of a database, for several machines; ``study.db`` in ``out`` if not given.
        study: Name in that database; that of ``out`` if not given.
        workers: Trials side by side on this machine.
        say: Where messages for people go.

    Raises:
        MissingExtraError: Optuna is not installed.
        UsageError: Something is asked wrongly, or differs from what the study was begun with.
        TrainingError: The first trials all failed, or a worker died.
    """
    given = {"train.init": None if init is None else os.fspath(init), "train.epochs": epochs}
    says_nothing = not any((model, data, config, changes, *given.values()))
    resolved = None if says_nothing else _resolved(model, data, config, changes, given)
    return run_tuning(
        resolved,
        Path(out),
        trials=trials,
        space=None if space is None else Path(space),
        pruner=pruner,
        storage=storage,
        study_name=study,
        workers=workers,
        say=say,
    )


def lr_range(
    model: str = DEFAULT_PRESET,
    data: Source | None = None,
    *,
    config: str | Path | None = None,
    init: Source | None = None,
    changes: Mapping[str, Any] | None = None,
    out: Source = "lr-range",
    steps: int = 120,
    say: Say = print,
) -> LrRange:
    """Suggest a learning rate by one short training whose rate rises until the loss does.

    Args:
        model: Preset to train.
        data: Folder of the data set, in any layout that is read.
        config: As for :func:`tune`.
        init: As for :func:`tune`.
        changes: As for :func:`tune`.
        out: Folder for lr_range.json and lr_range.png.
        steps: From the lowest to the highest rate.
        say: Where messages for people go.

    Raises:
        UsageError: Model or data are asked for wrongly.
        TrainingError: The loss did not fall at any rate.
    """
    given = {"train.init": None if init is None else os.fspath(init)}
    return run_lr_range(_resolved(model, data, config, changes, given), Path(out), steps=steps, say=say)


def _resolved(
    model: str | None,
    data: Source | None,
    config: str | Path | None,
    changes: Mapping[str, Any] | None,
    given: Mapping[str, Any],
) -> Config:
    """The preset with its recipe, the file over it, then changes, then the arguments that are given."""
    arguments = {key: value for key, value in given.items() if value is not None}
    if data is not None:
        arguments["data.root"] = os.fspath(data)
    return resolve_config(model or DEFAULT_PRESET, config, {**(changes or {}), **arguments})
