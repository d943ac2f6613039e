"""``detrkit plot``: curves of one or several runs."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Annotated, Any

from detrkit.cli.shared import JsonOption, arg, errors, opt, print_json, say
from detrkit.errors import UsageError


def plot(
    runs: Annotated[list[Path], arg("RUN", "Folders of runs, finished or still training.")],
    out: Annotated[
        Path | None,
        opt("FILE", "A .png or .html file; curves.html in a single run, or here with a number if it is taken."),
    ] = None,
    metric: Annotated[
        list[str] | None, opt("NAME", "What to draw, as in metrics.jsonl, such as AP50; may repeat. All else.")
    ] = None,
    smooth: Annotated[
        float, opt("S", "Weight of the past in curves of steps; 0 does not smooth.", min=0, max=0.999)
    ] = 0.6,
    across: Annotated[str, opt("AXIS", "step, epoch or time (hours of training).", "--x")] = "step",
    as_json: JsonOption = False,
) -> None:
    """Draw curves of one or several runs: losses, AP, learning rates, gradient norms, speed and memory.

    An .html file shows values under the pointer and what differs between the runs' configs.
    """
    with errors():
        if across not in ("step", "epoch", "time"):
            raise UsageError(f"--x is {across!r}, expected step, epoch or time")
        from detrkit.visual.overview import plot_runs

        choice: Any = across
        path = out or _free_file(runs)
        drawn = plot_runs(runs, path, metrics=metric or (), across=choice, smooth=smooth)
        if as_json:
            print_json(drawn.to_dict())
            return
        for run in drawn.runs:
            best = "" if run.best_ap is None else f"best AP {run.best_ap:.3f} in epoch {run.best_epoch}"
            say(f"{run.name}: {run.steps:,} steps, {best or 'no AP measured'}")
        say(f"Written to {drawn.path}")


def _free_file(runs: list[Path]) -> Path:
    """curves.html in a single run, otherwise here, or with the first number that is not taken."""
    from detrkit.files import is_free

    names = itertools.chain(["curves.html"], (f"curves-{number}.html" for number in itertools.count(2)))
    if len(runs) == 1 and runs[0].is_dir():  # what plot wrote there before is replaced
        return next(path for path in (runs[0] / name for name in names) if is_free(path))
    return next(path for path in map(Path, names) if not os.path.lexists(path))
