"""``detrkit thresholds``: from which score on detections are taken, class by class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detrkit.cli.shared import (
    BatchOption,
    DeviceOption,
    JsonOption,
    errors,
    progress_bar,
    quiet,
    say,
)

if TYPE_CHECKING:
    from rich.table import Table

    from detrkit.api.thresholds import ThresholdChoice


def thresholds(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Whatever detects, as for detrkit compare; also a COCO result file of the split."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA", help="Folder of the data set, or one COCO JSON file; a run's own if not given."
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Split to choose on; not one that the model was trained on.")
    ] = "val",
    check_split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Split to check on; if not given, the halves of --split on each other."),
    ] = None,
    precision: Annotated[
        float | None, typer.Option(metavar="P", help="Precision wished, such as 0.9; as much recall as it leaves.")
    ] = None,
    recall: Annotated[
        float | None, typer.Option(metavar="R", help="Recall wished, such as 0.9; as much precision as it leaves.")
    ] = None,
    f1: Annotated[bool, typer.Option("--f1", help="The best F1, if nothing else is wished.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Turn scores into probabilities first, which predict then shows.")
    ] = False,
    least_objects: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="A class with fewer objects gets the threshold of all classes."),
    ] = 10,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="thresholds.json in a run, where predict finds it, or here."),
    ] = None,
    batch_size: BatchOption = 4,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Choose the score from which detections are taken, class by class, and check it on other images."""
    with errors():
        from detrkit.api.thresholds import choose_thresholds
        from detrkit.errors import UsageError
        from detrkit.families.build import is_run
        from detrkit.threshold_file import FILE_NAME

        if f1 and (precision is not None or recall is not None):
            raise UsageError("--f1 goes with neither --precision nor --recall; give one of the three")
        folder = Path(model).expanduser()
        file = out or (folder / FILE_NAME if folder.is_dir() and is_run(folder) else Path(FILE_NAME))
        if file.is_dir():
            raise UsageError(f"{file} is a folder, expected the file to write, such as {file / FILE_NAME}")
        with progress_bar("detecting", as_json) as progress:
            choice = choose_thresholds(
                model,
                data,
                split=split,
                check_split=check_split,
                precision=precision,
                recall=recall,
                calibrate=calibrate,
                out=file,
                least_objects=least_objects,
                batch_size=batch_size,
                device=device,
                say=quiet if as_json else say,
                progress=progress,
            )
        if as_json:
            typer.echo(json.dumps(choice.to_dict(), indent=1, allow_nan=False))
            return
        from rich.console import Console

        Console().print(_table(choice))
        for line in _lines(choice):
            say(line)
        say(f"Written to {file}")


def _table(choice: ThresholdChoice) -> Table:
    """Wished, expected and found on other images, class by class."""
    from rich.markup import escape
    from rich.table import Table

    from detrkit.visual.text import shortened

    chosen, check = choice.thresholds, choice.check
    table = Table(title=f"thresholds for {_wish(chosen)}", title_justify="left")
    table.add_column("class", style="bold")
    for heading in ("objects", "threshold", "precision", "recall"):
        table.add_column(heading, justify="right")
    if check is not None:
        table.add_column("checked: precision", justify="right")
        table.add_column("recall", justify="right")
    for class_id, entry in enumerate(chosen.classes):
        mark = "" if entry.own else "*"
        expected = (_percent(entry.precision), _percent(entry.recall))
        row = [escape(shortened(entry.name, 40)), f"{entry.objects:,}", f"{entry.score:.3f}{mark}", *expected]
        if check is not None:
            row += [_percent(check.precision(class_id)), _percent(check.recall(class_id))]
        table.add_row(*row)
    if check is not None:
        total = ["all", f"{chosen.objects:,}", "", "", ""]
        table.add_section()
        table.add_row(*total, _percent(check.precision()), _percent(check.recall()))
    return table


def _lines(choice: ThresholdChoice) -> list[str]:
    """What the table does not say."""
    from detrkit.visual.text import printable

    chosen, check = choice.thresholds, choice.check
    lines = []
    borrowed = sum(not entry.own for entry in chosen.classes)
    if borrowed:
        lines.append(
            f"* {borrowed} of {len(chosen.classes)} classes have few objects or none found, and take the "
            f"threshold of all classes together, {chosen.default:.3f}"
        )
    short = [entry for entry in chosen.classes if entry.own and not entry.reached]
    if short:
        names = ", ".join(printable(entry.name)[:60] for entry in short[:8]) + (", ..." if len(short) > 8 else "")
        lines.append(f"WARNING: {_wish(chosen)} cannot be had at any score for {names}; the nearest is taken")
    lines.append(f"checked on {choice.checked_on}" if check is not None else choice.checked_on)
    if chosen.scale.temperature != 1 or chosen.scale.bias:
        kind = "Platt scaling" if chosen.scale.bias else "temperature scaling"
        values = f"temperature {chosen.scale.temperature:.3f}, bias {chosen.scale.bias:.3f}"
        lines.append(f"scores become probabilities by {kind}: {values}")
        if check is not None:
            lines.append(
                f"calibration error on the check: {check.ece:.4f} before, {check.ece_calibrated:.4f} after"
            )
            if check.ece_calibrated >= check.ece:
                lines.append("WARNING: calibration does not help on other images; better leave --calibrate out")
    return lines


def _wish(chosen: Any) -> str:
    return "the best F1" if chosen.wished is None else f"{chosen.criterion} {chosen.wished:g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
