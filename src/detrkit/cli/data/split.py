"""``detrkit data split``."""

from __future__ import annotations

from typing import Annotated

from detrkit.cli.data import shared
from detrkit.cli.shared import ImageFolderOption, JsonOption, errors, opt, progress_bar, quiet, say
from detrkit.errors import counted


def split(
    data: shared.DataArgument,
    out: shared.OutOption,
    shares: Annotated[
        str, opt("SHARES", "Share of the images by name, as train=0.8,val=0.1,test=0.1.")
    ] = "train=0.8,val=0.2",
    source: Annotated[str | None, opt("NAME", "Split to divide, where there are several.", "--split")] = None,
    seed: shared.SeedOption = 0,
    groups: Annotated[
        bool, opt(None, "Keep near-duplicate images in the same part.", "--groups/--no-groups")
    ] = True,
    max_distance: Annotated[
        int | None, opt("BITS", "Bits of 256 by which near-duplicates differ at most; else 48.", min=0, max=128)
    ] = None,
    layout: shared.LayoutOption = "auto",
    copy: shared.CopyOption = False,
    image_folder: ImageFolderOption = None,
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
                layout=shared.checked_layout(layout),
                seed=seed,
                group=groups,
                max_distance=MAX_DISTANCE if max_distance is None else max_distance,
                copy=copy,
                image_folder=image_folder,
                say=quiet if as_json else say,
                progress=progress,
            )
        if groups and not as_json:
            kept = f"{counted(result.groups, 'group')} of near-duplicates kept together"
            say(kept + (f", the largest of {result.largest_group}" if result.groups else ""))
        shared.report_parts(
            result, as_json, f"; shares of each class are off by {100 * result.deviation:.1f} % on average"
        )
