"""``detrkit eval``: how good a model is, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from detrkit.cli.shared import (
    AsOption,
    BatchOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    PrecisionOption,
    checked_precision,
    errors,
    free_folder,
    progress_bar,
    quiet,
    say,
)


def evaluate(
    model: ModelArgument,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA", help="Folder of the data set, or one COCO JSON file; a run's own if not given."
        ),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split to evaluate on.")] = "val",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for metrics.json, detections.json and plots; RUN/eval for a run, otherwise eval, with a "
            "number if it is taken.",
        ),
    ] = None,
    batch_size: BatchOption = 4,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "32",
    preset: AsOption = None,
    as_json: JsonOption = False,
) -> None:
    """COCO box metrics of any model on any data set: all 12 numbers and per class."""
    with errors():
        from detrkit import api

        detector = api.load(model, preset, device=device, precision=checked_precision(precision))
        folder = out or _default_eval_folder(model)
        with progress_bar("evaluating", as_json) as progress:
            metrics = api.evaluate(
                detector,
                data,
                split=split,
                out=folder,
                batch_size=batch_size,
                say=quiet if as_json else say,
                progress=progress,
            )
        if as_json:
            typer.echo(json.dumps(metrics.to_dict(), indent=1))
            return
        from rich.console import Console

        from detrkit.evaluation.report import class_table, metrics_table

        console = Console()
        console.print(class_table(metrics))
        console.print(metrics_table(metrics))
        say(f"Written to {folder}: metrics.json, detections.json (COCO result format), precision_recall.png")


def _default_eval_folder(model: str) -> Path:
    from detrkit.models import is_run

    path = Path(model)
    return free_folder(path / "eval" if path.is_dir() and is_run(path) else Path("eval"))
