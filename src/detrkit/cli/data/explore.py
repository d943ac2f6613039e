"""``detrkit data stats`` and ``detrkit data preview``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detrkit.cli.data.convert import DataArgument, LayoutOption, checked_layout
from detrkit.cli.shared import JsonOption, errors, fail, free_folder, progress_bar, quiet, say
from detrkit.config import DEFAULT_PRESET
from detrkit.errors import counted

if TYPE_CHECKING:
    from detrkit.config import Config
    from detrkit.data.formats import SplitFiles

ModelOption = Annotated[
    str, typer.Option(metavar="PRESET", help="Whose training transforms are meant; see: detrkit models.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any config value, as transforms.recipe=mosaic; may repeat."),
]


def stats(
    data: DataArgument,
    splits: Annotated[
        list[str] | None, typer.Option("--split", metavar="NAME", help="Only this split; may repeat.")
    ] = None,
    model: ModelOption = DEFAULT_PRESET,
    assignments: SetOption = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with plots, one HTML file.")
    ] = None,
    layout: LayoutOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """What is in a data set: classes, box sizes, objects per image, and what of small ones reaches the model."""
    with errors():
        config = _config(model, assignments)
        from detrkit.curation.input_sizes import eval_inputs, train_inputs
        from detrkit.curation.stats import dataset_stats
        from detrkit.data.read import read_split_files

        indexes = {}
        for name, files in _splits(data, layout, splits).items():
            indexes[name], defects = read_split_files(files)
            for line in defects.lines():
                (quiet if as_json else say)(line)
        shown = indexes.get("train", next(iter(indexes.values())))
        with progress_bar("running the transforms", as_json) as progress:
            inputs = {
                "train": train_inputs(shown, config.transforms, progress=progress),
                "eval": eval_inputs(shown, config.transforms),
            }
        found = dataset_stats(indexes, inputs, config.model.num_queries)
        if html is not None:
            from detrkit.curation.stats_report import write_stats_page

            write_stats_page(html, f"{data.resolve().name}: data set", indexes, found)
        if as_json:
            typer.echo(json.dumps(found.to_dict(), indent=1))
            return
        from rich.console import Console

        from detrkit.curation.stats_report import printed_tables

        console = Console()
        for table in printed_tables(found):
            console.print(table.rich())
        for line in found.advice:
            say(f"note: {line}")
        say(f"Written to {html}" if html is not None else "For plots, and all classes: --html FILE")


def preview(
    data: DataArgument,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split to draw from.")] = "train",
    count: Annotated[int, typer.Option(min=1, max=500, metavar="N", help="Images.")] = 12,
    draws: Annotated[
        int, typer.Option(min=0, max=12, metavar="N", help="Draws of augmentation beside each image.")
    ] = 3,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder; preview, with a number if it is taken."),
    ] = None,
    model: ModelOption = DEFAULT_PRESET,
    assignments: SetOption = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the choice and of augmentation.")] = 0,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Only images that hold this class.")
    ] = None,
    layout: LayoutOption = "auto",
) -> None:
    """Draw images with their annotations, as annotated and as augmentation shows them to the model."""
    problems: list[str] = []
    with errors():
        config = _config(model, assignments)
        from detrkit.curation.preview import preview_rows, write_preview
        from detrkit.data.read import read_split_files

        files = next(iter(_splits(data, layout, [split]).values()))
        index, report = read_split_files(files)
        for line in report.lines():
            say(line)
        rows = preview_rows(
            index,
            files.images,
            config.transforms,
            count=count,
            draws=draws,
            seed=seed,
            class_name=class_name,
            on_error=lambda error: problems.append(str(error)),
        )
        how = f"Augmentation: the {config.transforms.recipe} recipe of {model}, seed {seed}."
        if assignments:
            how += f" Changed: {', '.join(assignments)}."
        with progress_bar("drawing", False) as progress:
            page, pictures = write_preview(
                out or free_folder(Path("preview")),
                f"{data.resolve().name}: {split}",
                rows,
                how,
                progress=lambda done: progress(done, min(count, len(index))),
            )
        for problem in problems:
            typer.echo(f"skipped {problem}", err=True)
        if not pictures:
            fail(f"no image of {split} could be read", 1)
        say(f"{counted(len(pictures), 'picture')} in {page.parent}; all on one page: {page}")


def _config(model: str, assignments: list[str] | None) -> Config:
    from detrkit.config import parse_assignments, update_config
    from detrkit.families.recipes import preset_config

    return update_config(preset_config(model), parse_assignments(assignments or []))


def _splits(data: Path, layout: str, wanted: list[str] | None) -> dict[str, SplitFiles]:
    """Find the wanted splits of a data set, all if none are named."""
    from detrkit.data.formats import find_splits

    return find_splits(data, checked_layout(layout), wanted)  # type: ignore[arg-type]
