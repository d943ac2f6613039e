"""``detrkit data sample``."""

from __future__ import annotations

from typing import Annotated

from detrkit.cli.data import shared
from detrkit.cli.shared import ImageFolderOption, JsonOption, errors, opt, progress_bar, quiet, say


def sample(
    data: shared.DataArgument,
    out: shared.OutOption,
    count: Annotated[int, opt("N", "Images in all, shared among the splits.", min=1)],
    source: shared.SplitsOption = None,
    seed: shared.SeedOption = 0,
    min_per_class: Annotated[int, opt("N", "Images that each class gets at least, where possible.", min=0)] = 1,
    layout: shared.LayoutOption = "auto",
    copy: shared.CopyOption = False,
    image_folder: ImageFolderOption = None,
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
                layout=shared.checked_layout(layout),
                seed=seed,
                min_per_class=min_per_class,
                copy=copy,
                image_folder=image_folder,
                say=quiet if as_json else say,
                progress=progress,
            )
        shared.report_parts(result, as_json, "")
