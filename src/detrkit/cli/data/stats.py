"""``detrkit data stats``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from detrkit.cli.data import shared
from detrkit.cli.shared import ImageFolderOption, JsonOption, errors, opt, progress_bar, quiet, say
from detrkit.config import DEFAULT_PRESET


def stats(
    data: shared.DataArgument,
    image_folder: ImageFolderOption = None,
    splits: shared.SplitsOption = None,
    model: shared.PresetOption = DEFAULT_PRESET,
    assignments: shared.TransformsOption = None,
    html: Annotated[Path | None, opt("FILE", "Also write a page with plots, one HTML file.", "--html")] = None,
    masks: Annotated[bool, opt(None, "Also measure masks, pixel by pixel, and stuff.", "--masks")] = False,
    layout: shared.LayoutOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show what a data set holds: classes, box sizes, objects an image, what of small ones reaches the model."""
    with errors():
        config = shared.changed_config(model, assignments)
        from detrkit.curation.input_sizes import eval_inputs, train_inputs
        from detrkit.curation.stats import dataset_stats, mask_stats
        from detrkit.data.formats import find_splits
        from detrkit.data.read import read_told
        from detrkit.files import check_free

        if html is not None:
            check_free(html)
        found_splits = find_splits(data, shared.checked_layout(layout), splits, image_folder)
        told = quiet if as_json else say
        read = {name: read_told(files, told, masks=masks) for name, files in found_splits.items()}
        of_masks = {name: own for name, (index, _) in read.items() if (own := mask_stats(index)) is not None}
        indexes = {name: index.things() for name, (index, _) in read.items()}
        if masks and not of_masks:
            told("no object has a mask")
        shown = indexes.get("train", next(iter(indexes.values())))
        with progress_bar("running the transforms", as_json) as progress:
            inputs = {
                "train": train_inputs(shown, config.transforms, progress=progress),
                "eval": eval_inputs(shown, config.transforms),
            }
        found = dataset_stats(indexes, inputs, config.model.num_queries, of_masks)
        if html is not None:
            from detrkit.curation.stats_report import write_stats_page

            write_stats_page(html, f"{data.resolve().name}: data set", indexes, found)
        if as_json:
            shared.print_read(found, {name: report for name, (_, report) in read.items()})
            return
        from detrkit.curation.stats_report import printed_tables

        for table in printed_tables(found):
            table.show()
        for line in found.advice:
            say(f"note: {line}")
        say(f"Written to {html}" if html is not None else "For plots, and all classes: --html FILE")
