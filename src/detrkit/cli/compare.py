"""``detrkit compare``: which detector is better, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detrkit.cli.shared import (
    DeviceOption,
    JsonOption,
    PrecisionOption,
    checked_precision,
    errors,
    quiet,
    say,
)

if TYPE_CHECKING:
    from detrkit.comparison.result import Comparison


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Two or more: preset, run, checkpoint, file, hub id; torchvision:NAME (NAME@FILE, NAME@random); "
            "hf:ID of a transformers model; or a .json file of detections in COCO's result format.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Folder of the data set in any layout, or one COCO JSON file; the first run's own if not given.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split to compare on.")] = "val",
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder for the page, tables and detections; detections that are there, of the same weights on "
            "the same images, are used.",
        ),
    ] = Path("compare"),
    classes: Annotated[
        str,
        typer.Option(
            metavar="WHICH", help="shared: the classes that all of them know; all: every class of the data set."
        ),
    ] = "shared",
    against: Annotated[
        str,
        typer.Option(metavar="WHICH", help="Compare with the first model given, or with the best: first or best."),
    ] = "first",
    resamples: Annotated[int, typer.Option(min=10, metavar="N", help="Of the images, for intervals.")] = 1000,
    latency: Annotated[int, typer.Option(min=0, metavar="N", help="Images to time on; 0 for no timing.")] = 10,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, metavar="N", help="Images at once where detecting.")
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "32",
    as_json: JsonOption = False,
) -> None:
    """Compare detectors on the same images with the same evaluator: accuracy, speed, and how sure it is."""
    with errors():
        checked = checked_precision(precision)
        from detrkit.api.compare import compare as compare_models
        from detrkit.comparison.write import FILES

        with _progress(as_json) as progress:
            comparison = compare_models(
                models,
                data,
                split=split,
                out=out,
                classes=classes,  # type: ignore[arg-type]
                reference=against,  # type: ignore[arg-type]
                resamples=resamples,
                latency_images=latency,
                batch_size=batch_size,
                device=device,
                precision=checked,
                say=quiet if as_json else say,
                progress=progress,
            )
        if as_json:
            typer.echo(json.dumps(comparison.to_dict(), indent=1, allow_nan=False))
            return
        _show(comparison)
        say(f"Written to {out}: {', '.join(FILES)}, detections/")


def _show(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from detrkit.comparison.page import detector_row
    from detrkit.visual.text import printable, shortened

    accuracy = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")
    speed = ("median ms", "95 % ms", "params M", "GFLOPs", "MB")
    title = f"{comparison.images:,} images, {comparison.objects:,} objects"
    for first, columns, heading in ((0, accuracy, title), (len(accuracy), speed, "one image at a time")):
        table = Table(title=heading, title_justify="left")
        table.add_column("detector", style="bold", overflow="fold")
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for model in comparison.models:
            name, _, *numbers = detector_row(model)
            cells = ["-" if not isinstance(value, int | float) else f"{value:,.1f}" for value in numbers]
            table.add_row(Text(shortened(str(name), 60)), *cells[first : first + len(columns)])
        Console().print(table)
    for verdict in comparison.verdicts:
        say(printable(verdict))


@contextmanager
def _progress(hidden: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error whose title changes with the work."""
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=hidden or not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=escape(what), completed=done, total=total)
