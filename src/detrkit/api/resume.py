"""``detrkit.resume``: go on with a training that was stopped."""

from __future__ import annotations

from pathlib import Path

from detrkit.api.common import Source
from detrkit.config import Config, update_config
from detrkit.training.loop import FitResult
from detrkit.training.run import Say, resume_run


def resume(run: Source, *, epochs: int | None = None, say: Say = print) -> FitResult:
    """Go on with a run from its last checkpoint, as if it had never stopped.

    Args:
        run: The run folder.
        epochs: A new total, to train longer than was planned; schedules stretch accordingly.
        say: Where messages for people go.
    """

    def change(config: Config) -> Config:
        return config if epochs is None else update_config(config, {"train.epochs": epochs})

    return resume_run(Path(run), say, change)
