"""``detrkit compare``: which detector is better, and how sure that is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from detrkit.cli import shared
from detrkit.cli.shared import arg, opt

if TYPE_CHECKING:
    from detrkit.comparison.result import Comparison


def compare(
    models: Annotated[
        list[str],
        arg(
            "MODEL...",
            "Two or more: preset, run, checkpoint, file, hub id; torchvision:NAME (NAME@FILE, NAME@random); "
            "hf:ID of a transformers model; or a .json file of detections in COCO's result format.",
        ),
    ],
    data: Annotated[
        Path | None, opt("DATA", "Data set folder or COCO JSON file; the first run's own if not given.")
    ] = None,
    split: shared.SplitOption = None,
    image_folder: shared.ImageFolderOption = None,
    out: Annotated[
        Path | None,
        opt("DIR", "Folder of results, compare if not given; detections of the same weights there are used."),
    ] = None,
    classes: Annotated[
        str | None,
        opt("WHICH", "shared: classes that all of them know, if not given; all: those of the data set."),
    ] = None,
    against: Annotated[
        str | None, opt("WHICH", "Compare with the first model given (first), or with the best (best).")
    ] = None,
    resamples: Annotated[int | None, opt("N", "Of the images, for intervals; 1,000 if not given.", min=10)] = None,
    latency: Annotated[int | None, opt("N", "Images to time on, 10 if not given; 0 for no timing.", min=0)] = None,
    batch_size: Annotated[int | None, opt("N", "Images at once where detecting.", "--batch-size", min=1)] = None,
    tiles: shared.TilesOption = None,
    device: shared.DeviceOption = None,
    precision: shared.PrecisionOption = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Compare detectors on the same images with the same evaluator: accuracy, speed, and how sure it is."""
    with shared.errors():
        from detrkit.api.compare import compare as compare_models
        from detrkit.comparison.write import FILES

        options = shared.given(
            split=split,
            image_folder=image_folder,
            out=out,
            classes=classes,
            reference=against,
            resamples=resamples,
            latency_images=latency,
            batch_size=batch_size,
            tiles=tiles,
            device=device,
            precision=precision,
        )
        with shared.step_bar(hidden=as_json) as progress:
            comparison = compare_models(
                models, data, say=shared.quiet if as_json else shared.say, progress=progress, **options
            )
        if as_json:
            shared.print_json(comparison.to_dict())
            return
        _show(comparison)
        shared.say(f"Written to {out or 'compare'}: {', '.join(FILES)}, detections/")


def _show(comparison: Comparison) -> None:
    from detrkit.comparison.page import SPEED_COLUMNS, accuracy_columns, detector_table
    from detrkit.visual.text import printable

    table = detector_table(comparison)
    title = f"{comparison.images:,} images, {comparison.objects:,} objects"
    parts = ((title, accuracy_columns(comparison)), ("one image at a time", SPEED_COLUMNS))
    for title, columns in parts:
        dataclasses.replace(table.only("detector", *columns), title=title).show()
    for verdict in comparison.verdicts:
        shared.say(printable(verdict))
