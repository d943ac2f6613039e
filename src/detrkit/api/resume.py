"""``detrkit.resume``: go on with a training that was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.api.common import Source
from detrkit.training.loop import FitResult
from detrkit.training.run import Drawings, Say, resume_run
from detrkit.visual.curves import plot_curves
from detrkit.visual.drawing import draw


def resume(
    run: Source, *, epochs: int | None = None, changes: Mapping[str, Any] | None = None, say: Say = print
) -> FitResult:
    """Go on with a run from its last checkpoint, as if it had never stopped.

    Args:
        run: Run folder.
        epochs: New total, to train longer than was planned; schedules stretch accordingly.
        changes: Other config values to go on with, dotted; the rest is that of the checkpoint.
        say: Receives messages for people.
    """
    given = {} if epochs is None else {"train.epochs": epochs}
    drawings = Drawings(plot_curves, draw)
    return resume_run(Path(run), say, {**(changes or {}), **given}, drawings=drawings)
