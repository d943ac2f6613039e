"""``detrkit data convert``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from detrkit.cli.shared import JsonOption, errors, progress_bar, quiet, say
from detrkit.errors import counted

DataArgument = Annotated[
    Path,
    typer.Argument(metavar="DATA", help="Data set: folder in any layout, a COCO JSON file, or a data.yaml."),
]
LayoutOption = Annotated[
    str,
    typer.Option(metavar="LAYOUT", help="How to read it: auto, coco, yolo, voc or panoptic."),
]


def convert(
    data: DataArgument,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="coco, yolo or voc.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New or empty folder to write to.")],
    split: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Split to convert, may be repeated; all if not given.")
    ] = None,
    layout: LayoutOption = "auto",
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy images; otherwise they are hard-linked where possible.")
    ] = False,
    decimals: Annotated[
        bool, typer.Option("--decimals", help="For voc: write fractions of pixels; some readers know none.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a data set as COCO, YOLO or Pascal VOC, whatever its layout; the original is not touched."""
    with errors():
        from detrkit.curation.convert import convert_data

        with progress_bar("writing", as_json) as progress:
            result = convert_data(
                data,
                out,
                to,
                layout=checked_layout(layout),  # type: ignore[arg-type]
                splits=split,
                copy=copy,
                decimals=decimals,
                say=quiet if as_json else say,
                progress=progress,
            )
        if as_json:
            typer.echo(json.dumps(result.to_dict(), indent=1))
            return
        for note in result.notes:
            say(note)
        images = sum(part.images for part in result.splits.values())
        objects = sum(part.objects for part in result.splits.values())
        what = f"{counted(images, 'image')} and {counted(objects, 'object')}"
        say(f"Written as {to} to {result.path}: {what} in {counted(len(result.splits), 'split')}")


def checked_layout(text: str) -> str:
    """The layout if it is one.

    Raises:
        UsageError: It is none.
    """
    from typing import get_args

    from detrkit.config import Layout
    from detrkit.errors import UsageError

    if text not in get_args(Layout):
        raise UsageError(f"--layout is {text!r}, expected one of {', '.join(get_args(Layout))}")
    return text
