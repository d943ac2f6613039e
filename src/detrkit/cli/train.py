"""``detrkit train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from detrkit.cli import shared
from detrkit.cli.shared import opt
from detrkit.config import DEFAULT_PRESET
from detrkit.errors import UsageError


def train(
    model: Annotated[
        str | None, opt("PRESET", f"Which model; see: detrkit models. {DEFAULT_PRESET} if not given.")
    ] = None,
    data: shared.DataOption = None,
    run: Annotated[Path | None, opt("DIR", "Folder for the run; runs/MODEL-1 and so on if not given.")] = None,
    init: shared.InitOption = None,
    epochs: Annotated[int | None, opt("N", "Passes over the training images.", min=1)] = None,
    lr: shared.LrOption = None,
    batch: Annotated[
        str | None,
        opt("N|auto", "Images a batch and process; auto: in pieces that memory holds.", "--batch-size", "--batch"),
    ] = None,
    go_on: Annotated[
        bool,
        opt(None, "If --run holds a training already, go on with that one, changed as resume does.", "--resume"),
    ] = False,
    recipe: shared.RecipeOption = None,
    config: shared.ConfigOption = None,
    assignments: shared.SetOption = None,
    ray: Annotated[
        int | None, opt("N", "Train on a Ray cluster, with N processes of a GPU or CPU each.", min=1)
    ] = None,
    replay: Annotated[
        Path | None,
        opt("FILE", "Do not train: repeat a step that was not finite (RUN/nonfinite) and find where it began."),
    ] = None,
    as_json: Annotated[bool, opt(None, "With --replay: print what it found as JSON.", "--json")] = False,
) -> None:
    """Train or fine-tune on your data set. Ctrl-C saves; go on with: detrkit resume RUN."""
    with shared.errors():
        if replay is not None:
            from detrkit.api.replay import replay as repeat

            diagnosis = repeat(replay)
            if not as_json:
                shared.say(f"{diagnosis.file}:")
            shared.report(diagnosis, as_json)
            return
        from detrkit.api.train import train as begin
        from detrkit.cli.shared import run_drawings

        result = begin(
            model,
            data,
            run=run,
            config=config,
            init=init,
            epochs=epochs,
            lr=lr,
            batch_size=_batch_size(batch),
            recipe=recipe,  # type: ignore[arg-type]
            go_on=go_on,
            ray_workers=ray,
            changes=shared.parse_assignments(assignments or []),
            drawings=run_drawings(),
            say=shared.say,
        )
        shared.report_run(result)


def _batch_size(text: str | None) -> int | Literal["auto"] | None:
    if text is None or text == "auto":
        return "auto" if text else None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch-size is {text!r}, expected a number of images, at least 1, or auto")
    return int(text)
