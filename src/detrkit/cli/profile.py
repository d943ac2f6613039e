"""``detrkit profile``: where a training step's time and memory go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from detrkit.cli import shared
from detrkit.cli.shared import arg, opt
from detrkit.errors import UsageError


def profile(
    run: Annotated[Path | None, arg("[RUN]", "Folder of a run, to watch a training with its config.")] = None,
    model: Annotated[
        str | None, opt("PRESET", "Which model, where no run is given; detr-r50 if not given.")
    ] = None,
    data: shared.DataOption = None,
    init: shared.InitOption = None,
    config: shared.ConfigOption = None,
    assignments: shared.SetOption = None,
    steps: Annotated[int, opt("N", "Steps to take the median of.", min=1)] = 10,
    out: Annotated[
        Path | None, opt("DIR", "Folder for profile.json and profile.html; profile, with a number if it is taken.")
    ] = None,
    trace: Annotated[
        bool, opt(None, "Also write trace.json, for chrome://tracing or ui.perfetto.dev.", "--trace")
    ] = False,
    as_json: shared.JsonOption = False,
) -> None:
    """Where a training step's time and memory go, and what to change.

    Trains for some steps with the real loop, loader and settings, and keeps nothing of it.
    """
    with shared.errors():
        if run is not None and model is not None:
            raise UsageError(f"both the run {run} and --model {model} are given; give one of them")
        if run is not None and not (run / "config.yaml").is_file():
            raise UsageError(f"{run} is not a run folder: it has no config.yaml; for a preset give --model")
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or --trace complains of GPUs that are not there
        from detrkit.api.profile import profile as watch

        folder = out or shared.free_folder(Path("profile"))
        found = watch(
            run or model,
            data,
            config=config,
            init=init,
            changes=shared.parse_assignments(assignments or []),
            steps=steps,
            out=folder,
            trace=trace,
            say=shared.quiet if as_json else shared.say,
        )
        files = "profile.json, profile.html" + (", trace.json" if trace else "")
        shared.report(found, as_json, f"Written to {folder}: {files}")
