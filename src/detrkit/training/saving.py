"""What a checkpoint of a training holds, and when it is written."""

from __future__ import annotations

import time
from typing import Any

from detrkit.training.nonfinite.watch import check_previous_step
from detrkit.training.session import Run


def save_last(run: Run) -> None:
    """Save the state to resume from; all processes take part."""
    check_previous_step(run)
    saved = {**payload(run), "log": run.log.position()}  # which waits until the log is on the disk
    if run.fabric.is_global_zero:
        run.store.save_last(saved)
    run.saved_at_s = time.monotonic()
    run.saved_step = run.state.progress.step


def payload(run: Run) -> dict[str, Any]:
    """What a checkpoint of the run holds."""
    return {
        "config": run.config.model_dump(mode="json"),
        "class_map": run.class_map.to_dict(),
        "world_size": run.fabric.world_size,
        **run.state.state_dict(),
    }
