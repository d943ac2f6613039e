"""``detrkit data cache``: copies of the training images at the size that training needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from detrkit.cli.data.shared import DataArgument, print_read
from detrkit.cli.shared import ImageFolderOption, JsonOption, errors, opt, progress_bar, quiet, say


def cache(
    data: DataArgument,
    out: Annotated[
        Path | None, opt("DIR", "Folder of the cache; DATA-cache, which training finds, if not given.")
    ] = None,
    split: Annotated[str, opt("NAME", "Split to copy.")] = "train",
    size: Annotated[int, opt("N", "Greatest short side of a copy in pixels: the largest scale.", min=32)] = 800,
    quality: Annotated[int, opt("Q", "Of the JPEG files.", min=1, max=100)] = 90,
    workers: Annotated[int | None, opt("N", "Images at once; one per CPU if not given.", min=1)] = None,
    image_folder: ImageFolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy large training images at the size that training needs. Stopped or killed, the same command goes on."""
    with errors():
        from detrkit.curation.cache import build_cache
        from detrkit.data.cache import default_cache_folder
        from detrkit.data.formats import find_splits
        from detrkit.data.read import read_told

        (files,) = find_splits(data, "auto", [split], image_folder).values()
        index, report = read_told(files, quiet if as_json else say)
        folder = out or default_cache_folder(data)
        with progress_bar("caching", as_json) as progress:
            result = build_cache(
                index, files.images, split, folder, short=size, quality=quality, workers=workers, progress=progress
            )
        if as_json:
            print_read(result, {split: report})
            return
        for line in result.lines():
            say(line)
        found = f"training with --data {data} finds it" if out is None else f"train with --set data.cache={folder}"
        say(f"Written to {folder}; {found}, and reads what is not in it from {files.images}")
