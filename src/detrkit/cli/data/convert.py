"""``detrkit data convert``."""

from __future__ import annotations

from typing import Annotated

from detrkit.cli.data import shared
from detrkit.cli.shared import ImageFolderOption, JsonOption, errors, opt, print_json, progress_bar, quiet, say
from detrkit.errors import counted


def convert(
    data: shared.DataArgument,
    to: Annotated[str, opt("FORMAT", "coco, yolo, voc or panoptic.", "--to")],
    out: shared.OutOption,
    split: Annotated[list[str] | None, opt("NAME", "Split to convert, may be repeated; all if not given.")] = None,
    layout: shared.LayoutOption = "auto",
    image_folder: ImageFolderOption = None,
    copy: shared.CopyOption = False,
    decimals: Annotated[
        bool, opt(None, "For voc: write fractions of pixels; some readers know none.", "--decimals")
    ] = False,
    polygons: Annotated[bool, opt(None, "For yolo: write masks as polygons, no boxes.", "--polygons")] = False,
    stuff: Annotated[bool, opt(None, "Write stuff of COCO panoptic as objects, too.", "--stuff")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a data set as COCO, YOLO, Pascal VOC or COCO panoptic, whatever its layout; the original stays.

    Exits with 1 if most objects of a split or all of a class are lost on the way.
    """
    with errors():
        from detrkit.curation.convert import convert_data

        with progress_bar("writing", as_json) as progress:
            result = convert_data(
                data,
                out,
                to,
                layout=shared.checked_layout(layout),
                image_folder=image_folder,
                splits=split,
                copy=copy,
                decimals=decimals,
                polygons=polygons,
                stuff=stuff,
                say=quiet if as_json else say,
                progress=progress,
            )
        if as_json:
            print_json(result.to_dict())
        else:
            for note in result.notes:
                say(note)
            images = sum(part.images for part in result.splits.values())
            objects = sum(part.objects for part in result.splits.values())
            what = f"{counted(images, 'image')} and {counted(objects, 'object')}"
            say(f"Written as {to} to {result.path}: {what} in {counted(len(result.splits), 'split')}")
        shared.refuse_unfit(result.path, result.unfit)
