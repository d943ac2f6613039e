"""``detrkit data preview``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detrkit.cli.data import shared
from detrkit.cli.shared import ImageFolderOption, errors, fail, free_folder, opt, progress_bar, say
from detrkit.config import DEFAULT_PRESET
from detrkit.errors import counted


def preview(
    data: shared.DataArgument,
    image_folder: ImageFolderOption = None,
    split: Annotated[str, opt("NAME", "Split to draw from.")] = "train",
    count: Annotated[int, opt("N", "Images.", min=1, max=500)] = 12,
    draws: Annotated[int, opt("N", "Draws of augmentation beside each image.", min=0, max=12)] = 3,
    out: Annotated[Path | None, opt("DIR", "Folder; preview, with a number if it is taken.")] = None,
    model: shared.PresetOption = DEFAULT_PRESET,
    assignments: shared.TransformsOption = None,
    seed: Annotated[int, opt("N", "Of the choice and of augmentation.", min=0)] = 0,
    class_name: Annotated[str | None, opt("NAME", "Only images that hold this class.", "--class")] = None,
    masks: Annotated[bool, opt(None, "Read and draw masks, where there are some.", "--masks/--no-masks")] = True,
    layout: shared.LayoutOption = "auto",
) -> None:
    """Draw images with their annotations, as annotated and as augmentation shows them to the model."""
    problems: list[str] = []
    with errors():
        config = shared.changed_config(model, assignments)
        from detrkit.curation.preview import preview_rows, write_preview
        from detrkit.data.formats import find_splits
        from detrkit.data.pixel_range import measured_range
        from detrkit.data.read import read_told

        files = next(iter(find_splits(data, shared.checked_layout(layout), [split], image_folder).values()))
        index, _ = read_told(files, say, masks=masks)
        rows = preview_rows(
            index,
            files.images,
            config.transforms,
            count=count,
            draws=draws,
            seed=seed,
            class_name=class_name,
            pixel_range=measured_range(config.data.pixel_range, index, files.images),
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
