"""``detrkit.resume``: go on with a training that was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.api.common import Source
from detrkit.training.loop import FitResult
from detrkit.training.run import Drawings, Say, resume_run


def resume(
    run: Source,
    *,
    epochs: int | None = None,
    changes: Mapping[str, Any] | None = None,
    drawings: Drawings | None = None,
    say: Say = print,
) -> FitResult:
    """Go on with a run from its last checkpoint, as if it had never stopped.

    Args:
        run: Run folder.
        epochs: New total, to train longer than was planned; schedules stretch accordingly.
        changes: Other config values to go on with, dotted; the rest is that of the checkpoint.
        drawings: Functions that draw curves.png and sample detections during the training.
        say: Receives messages for people.
    """
    given = {} if epochs is None else {"train.epochs": epochs}
    return resume_run(Path(run), say, {**(changes or {}), **given}, drawings=drawings)
