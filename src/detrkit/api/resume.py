"""``detrkit.resume``: go on with a training that was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.api.common import Source, with_arguments
from detrkit.training.loop import FitResult
from detrkit.training.run import Drawings, Say, resume_run


def resume(
    run: Source,
    *,
    data: Source | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    changes: Mapping[str, Any] | None = None,
    drawings: Drawings | None = None,
    say: Say = print,
) -> FitResult:
    """Go on with a run from its last checkpoint, as if it had never stopped.

    Args:
        run: Run folder.
        data: Where the data set lies now, if it has moved; its images and objects must be those of the beginning.
        epochs: New total, to train longer than was planned; schedules stretch accordingly.
        lr: Learning rate to go on with, of everything but the backbone.
        changes: Other config values to go on with, dotted; the rest is that of the checkpoint.
        drawings: Functions that draw curves.png and sample detections during the training.
        say: Receives messages for people.

    Raises:
        ConfigError: A value cannot be changed once a run has begun; :mod:`detrkit.training.resuming` says which.
        DataError: The data is not that of the run.
        DetrkitError: Anything that checkpoint, data or training have to complain about.
    """
    given = {"data.root": data, "train.epochs": epochs, "train.lr": lr}
    return resume_run(Path(run), say, with_arguments(changes, given), drawings=drawings)
