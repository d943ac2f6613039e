"""``detrkit.preflight``: find faults before the long run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.api.common import Source, with_arguments
from detrkit.config import DEFAULT_PRESET
from detrkit.families.build import read_weights
from detrkit.families.presets import PRESETS
from detrkit.families.recipes import resolve_config
from detrkit.preflight.report import PreflightReport
from detrkit.preflight.run import run_preflight
from detrkit.training.run import Say


def preflight(
    model: str = DEFAULT_PRESET,
    data: Source | None = None,
    *,
    config: str | Path | None = None,
    init: Source | None = None,
    lr: float | None = None,
    changes: Mapping[str, Any] | None = None,
    out: Source = "preflight",
    seconds: float = 15.0,
    say: Say = print,
) -> PreflightReport:
    """Find out in about a minute whether a training will learn, with a verdict and its reasons.

    Args:
        model: Preset to train; or a run, checkpoint or weights file, to go on with as it is.
        data: Folder of the data set, in any layout that is read.
        config: As for :func:`train`.
        init: As for :func:`train`.
        lr: As for :func:`train`.
        changes: As for :func:`train`.
        out: Folder for preflight.html and verdict.json.
        seconds: To over-fit a handful of images at the training's learning rate.
        say: Where results go as they are made.

    Raises:
        UsageError: Model or data are asked for wrongly.
        WeightsError: The starting weights cannot be had.
    """
    given = {"data.root": data, "train.init": init, "train.lr": lr}
    is_preset = model in PRESETS or not Path(model).expanduser().exists()
    base = model if is_preset else read_weights(model)[1].model.preset
    resolved = resolve_config(base, config, with_arguments(changes, given))
    trained = None if is_preset else model
    return run_preflight(resolved, Path(out), trained_model=trained, budget_s=seconds, say=say)
