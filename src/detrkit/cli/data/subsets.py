"""``detrkit data split`` and ``detrkit data sample``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detrkit.cli.data.convert import DataArgument, LayoutOption, checked_layout
from detrkit.cli.shared import JsonOption, errors, progress_bar, quiet, say
from detrkit.errors import counted

if TYPE_CHECKING:
    from detrkit.curation.divide import DivideResult

OutOption = Annotated[Path, typer.Option(metavar="DIR", help="New or empty folder to write to.")]
SeedOption = Annotated[int, typer.Option(min=0, metavar="N", help="The same seed gives the same images.")]
CopyOption = Annotated[
    bool, typer.Option("--copy", help="Copy images; otherwise they are hard-linked where possible.")
]


def split(
    data: DataArgument,
    out: OutOption,
    shares: Annotated[
        str,
        typer.Option(metavar="SHARES", help="Share of the images by name, as train=0.8,val=0.1,test=0.1."),
    ] = "train=0.8,val=0.2",
    source: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Split to divide, where there are several.")
    ] = None,
    seed: SeedOption = 0,
    groups: Annotated[
        bool, typer.Option("--groups/--no-groups", help="Keep near-duplicate images in the same part.")
    ] = True,
    max_distance: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=128,
            metavar="BITS",
            help="Bits of 256 by which near-duplicates differ at most; else 48.",
        ),
    ] = None,
    layout: LayoutOption = "auto",
    copy: CopyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Divide a data set into training, validation and test parts, in COCO layout: every class in proportion."""
    with errors():
        from detrkit.curation.divide import split_data
        from detrkit.curation.duplicates import MAX_DISTANCE
        from detrkit.curation.subsets import parse_shares

        with progress_bar("comparing and writing" if groups else "writing", as_json) as progress:
            result = split_data(
                data,
                out,
                parse_shares(shares),
                split=source,
                layout=checked_layout(layout),  # type: ignore[arg-type]
                seed=seed,
                group=groups,
                max_distance=MAX_DISTANCE if max_distance is None else max_distance,
                copy=copy,
                say=quiet if as_json else say,
                progress=progress,
            )
        if groups and not as_json:
            kept = f"{counted(result.groups, 'group')} of near-duplicates kept together"
            say(kept + (f", the largest of {result.largest_group}" if result.groups else ""))
        _report(result, as_json, f"; shares of each class are off by {100 * result.deviation:.1f} % on average")


def sample(
    data: DataArgument,
    out: OutOption,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Images in all, shared among the splits.")],
    source: Annotated[
        list[str] | None, typer.Option("--split", metavar="NAME", help="Only this split; may repeat.")
    ] = None,
    seed: SeedOption = 0,
    min_per_class: Annotated[
        int, typer.Option(min=0, metavar="N", help="Images that each class gets at least, where possible.")
    ] = 1,
    layout: LayoutOption = "auto",
    copy: CopyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a small data set out of a large one, in COCO layout, with every class in proportion."""
    with errors():
        from detrkit.curation.divide import sample_data

        with progress_bar("writing", as_json) as progress:
            result = sample_data(
                data,
                out,
                count,
                splits=source,
                layout=checked_layout(layout),  # type: ignore[arg-type]
                seed=seed,
                min_per_class=min_per_class,
                copy=copy,
                say=quiet if as_json else say,
                progress=progress,
            )
        _report(result, as_json, "")


def _report(result: DivideResult, as_json: bool, ending: str) -> None:
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=1))
        return
    for part in result.parts:
        classes = f"{part.classes:,} {'class' if part.classes == 1 else 'classes'}"
        say(f"{part.name}: {counted(part.images, 'image')}, {counted(part.objects, 'object')} of {classes}")
    for note in result.notes:
        say(f"note: {note}")
    say(f"Written to {result.path}{ending}")
