"""``detrkit preflight``: will it learn?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from detrkit.cli import shared
from detrkit.cli.shared import opt
from detrkit.config import DEFAULT_PRESET


def preflight(
    model: Annotated[
        str, opt("MODEL", "Preset to train, or a run, checkpoint or weights file to go on with as it is.")
    ] = DEFAULT_PRESET,
    data: shared.DataOption = None,
    init: shared.InitOption = None,
    config: shared.ConfigOption = None,
    assignments: shared.SetOption = None,
    out: Annotated[
        Path | None,
        opt("DIR", "Folder for preflight.html and verdict.json; preflight, with a number if it is taken."),
    ] = None,
    seconds: Annotated[float, opt("S", "Time to over-fit a handful of images.", min=1)] = 15.0,
    as_json: shared.JsonOption = False,
) -> None:
    """Look for what spoils a training before the long run; takes about a minute on a CPU.

    Annotations, labels against pixels, class head, a handful of images over-fitted at three learning rates, time
    and memory. Exits with 1 if a fault is found.
    """
    with shared.errors():
        from detrkit.api.preflight import preflight as examine

        folder = out or shared.free_folder(Path("preflight"))
        verdict = examine(
            model,
            data,
            init=init,
            config=config,
            changes=shared.parse_assignments(assignments or []),
            out=folder,
            seconds=seconds,
            say=shared.quiet if as_json else shared.say,
        )
        shared.report(verdict, as_json, f"Pictures and curves: {folder / 'preflight.html'}", passed=verdict.ready)
