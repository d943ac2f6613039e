"""``detrkit.tune`` and ``detrkit.lr_range``: search for settings, and the learning-rate range test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.api.common import Say, Source, with_arguments
from detrkit.config import DEFAULT_PRESET
from detrkit.errors import UsageError
from detrkit.families.recipes import resolve_config
from detrkit.tuning.lr_range import LrRange, run_lr_range
from detrkit.tuning.results import StudyResult
from detrkit.tuning.run import run_tuning
from detrkit.tuning.settings import Pruner


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
        model: preset to train; ``detr-r50`` if not given.
        data: folder of the data set, in any layout that is read.
        config: YAML file over the preset; the arguments here go over both.
        init: starting weights of every trial, as for :func:`detrkit.train`.
        epochs: epochs of each trial.
        changes: other config values of every trial, dotted.
        out: folder of the study. To go on with one, nothing else need be given.
        trials: trials that the study is to have in all; 20 if not given.
        space: YAML file of config keys and their ranges or choices; what is usual if not given.
        pruner: way in which hopeless trials are ended early: ``median`` (if not given), ``hyperband`` or ``none``.
        storage: address of a database, for several machines; ``study.db`` in ``out`` if not given.
        study: name in that database; that of ``out`` if not given.
        workers: of an earlier version; only 1 is taken.
        say: receiver of messages for people.

    Raises:
        MissingExtraError: Optuna is not installed.
        UsageError: Something is asked wrongly, or differs from what the study was begun with.
        TrainingError: The first trials all failed.
    """
    if workers != 1:
        raise UsageError(
            f"got {workers} workers, which tune starts no more: start the same command {workers} times, each with "
            "its own CUDA_VISIBLE_DEVICES; processes with the same --out share the trials"
        )
    given = {"data.root": data, "train.init": init, "train.epochs": epochs}
    says_nothing = not any((model, config, changes, *given.values()))
    asked = with_arguments(changes, given)
    resolved = None if says_nothing else resolve_config(model or DEFAULT_PRESET, config, asked)
    return run_tuning(
        resolved,
        Path(out),
        trials=trials,
        space=None if space is None else Path(space),
        pruner=pruner,
        storage=storage,
        study_name=study,
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
        model: preset to train.
        data: folder of the data set, in any layout that is read.
        config: YAML file, as for :func:`tune`.
        init: starting weights, as for :func:`tune`.
        changes: other config values, dotted.
        out: folder for lr_range.json and lr_range.png.
        steps: steps from the lowest to the highest rate.
        say: receiver of messages for people.

    Raises:
        UsageError: Model or data are asked for wrongly.
        TrainingError: The loss did not fall at any rate.
    """
    given = {"data.root": data, "train.init": init}
    resolved = resolve_config(model, config, with_arguments(changes, given))
    return run_lr_range(resolved, Path(out), steps=steps, say=say)
