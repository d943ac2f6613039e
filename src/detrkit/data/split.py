"""One split of a data set, found and read, whatever its layout."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from detrkit.classes import ClassMap
from detrkit.config import Config, DataConfig
from detrkit.data.faults import MOST_LOST, ReadReport
from detrkit.data.formats import SplitFiles, find_split, find_splits
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_split_files
from detrkit.errors import DataError, counted, listed


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a data set, read.

    Args:
        files: Its place, and how that was recognised.
        index: Its images and annotations.
        report: Faults that were repaired or left out on reading.
    """

    files: SplitFiles
    index: CocoIndex
    report: ReadReport

    def lines(self) -> list[str]:
        """Return what people should know of it, in lines."""
        head = f"{self.files.annotations}: {len(self.index)} images, {len(self.index.labels)} objects"
        return [f"{head} ({self.files.reason}; images in {self.files.images})", *self.report.lines()]


def read_split(
    config: Config | DataConfig,
    split: str,
    data: str | Path | None = None,
    *,
    strict: bool = False,
    pixels: bool = True,
    may_lose: bool = False,
    image_folder: str | Path | None = None,
    masks: bool | None = None,
    stuff: bool | None = None,
) -> Split:
    """Find and read a split.

    Args:
        config: Its ``data`` section says where, unless ``data`` does.
        split: Name of the split.
        data: Folder of the data set in any layout, its data.yaml, or one COCO JSON file.
        strict: A missing image is an error, since evaluation without it would give another number.
        pixels: False: image files need not be there.
        image_folder: Folder of the images, where ``data`` does not hold them.
        may_lose: True: if much is lost on reading, it is only told; that all is lost stays an error unless
            ``data.on_lost_objects`` is warn.
        masks: Read masks too; if None, where the model of ``config`` has some.
        stuff: Of several data sets in one folder take COCO panoptic, unless ``data.layout`` says otherwise; if
            None, where masks are read.

    Raises:
        DataError: It cannot be read, or most of its objects or all of a class are lost on reading; or it has no
            masks, or few, where they are asked for; with ``may_lose`` one without any is read as it is.
    """
    own = config if isinstance(config, DataConfig) else config.data
    if masks is None:
        masks = isinstance(config, Config) and config.model.masks
    stuff = masks if stuff is None else stuff
    on_bad_image = ("error" if strict else own.on_bad_image) if pixels else "keep"
    if data is not None and Path(data).suffix == ".json" and Path(data).is_file():
        files = _files_of_json(Path(data), pixels, image_folder)
    else:
        named = None if image_folder is None else str(image_folder)
        given = DataConfig(train_split=split, train_images=named)
        files = find_split(data or own.root, split, own if data is None else given, stuff=stuff)
    goes_on = own.on_lost_objects == "warn"
    index, report = read_split_files(files, on_bad_image, may_lose=goes_on, masks=masks)
    if not may_lose and not goes_on:
        report.refuse_losses("correct the files, or go on with the rest: --set data.on_lost_objects=warn")
    if masks and not (may_lose and index.masks is None):
        _refuse_without_masks(index, files, report, may_lose=may_lose or goes_on)
    return Split(files, index, report)


def _refuse_without_masks(index: CocoIndex, files: SplitFiles, report: ReadReport, *, may_lose: bool) -> None:
    """Refuse a split whose objects have no masks, or most of them none.

    Raises:
        DataError: They have not.
    """
    lacking = len(index.labels) if index.masks is None else int((~index.masks.is_given).sum())
    if index.masks is None and len(index.labels):
        raise DataError(
            f"{files.annotations}: none of its {counted(lacking, 'object')} has a mask that can be used, and "
            f"the model has masks ({files.reason}); expected polygons or RLE of COCO JSON, polygons of YOLO, or "
            "COCO panoptic with its PNG files (--set data.layout=panoptic); for boxes alone, take a preset "
            f"without masks or --set model.masks=false\n{report}"
        )
    if lacking > MOST_LOST * len(index.labels) and not may_lose:
        raise DataError(
            f"{files.annotations}: {lacking:,} of {counted(len(index.labels), 'object')} have no mask of their "
            "own; correct the files, or learn only the boxes of these: --set data.on_lost_objects=warn:\n"
            f"{report}"
        )


def read_train_split(config: Config) -> Split:
    """Find and read the split to train on.

    Raises:
        DataError: It has no object to learn from, and ``data.on_lost_objects`` does not allow that.
    """
    train = read_split(config, config.data.train_split)
    if train.index.object_counts().any() or config.data.on_lost_objects == "warn":
        return train
    crowd = len(train.index.labels)
    what = f"all of its {counted(crowd, 'object')} are crowd regions" if crowd else "no object was read"
    lines = [
        f"{train.files.annotations}: nothing to learn in its {counted(len(train.index), 'image')}: {what} "
        f"({train.files.reason})",
        *train.report.lines(),
        "correct the data (detrkit data check DATA); to train on images without objects all the same: "
        "--set data.on_lost_objects=warn",
    ]
    raise DataError("\n".join(lines))


def _files_of_json(path: Path, pixels: bool, image_folder: str | Path | None) -> SplitFiles:
    try:
        return next(
            iter(find_splits(path, image_folder=Path(image_folder) if image_folder else None).values())
        )  # whatever split it is called
    except DataError:
        if pixels:
            raise
        return SplitFiles(path, path.parent, "COCO JSON", "its images were not found, and are not needed")


def missing_objects(split: Split) -> list[str]:
    """Return a warning if a split has no object that could be found."""
    if split.index.object_counts().any():
        return []
    return [f"WARNING: {split.files.annotations} has no object to find: no AP can be measured"]


def crowded_images(split: Split, queries: int) -> list[str]:
    """Return a warning if images have more objects than a model has queries."""
    counts = split.index.object_counts()
    if not (counts > queries).any():
        return []
    images = counted(int((counts > queries).sum()), "image")
    return [
        f"WARNING: {split.files.annotations}: {images} with more objects than the model has queries, "
        f"{int(counts.max())} of {queries}: the rest of them is never learnt or found; "
        f"train with more (--set model.num_queries={math.ceil(counts.max() / 100) * 100}), or tile the images"
    ]


def unknown_classes(class_map: ClassMap, split: Split) -> list[str]:
    """Return a warning if a split has objects of classes that the model does not know."""
    classes = split.index.class_map
    present = [classes.names[class_id] for class_id in np.unique(split.index.labels)]
    unknown = [name for name in present if name not in class_map.names]
    if not unknown:
        return []
    return [
        f"WARNING: {split.files.annotations}: the model does not know {len(unknown)} of its {len(present)} "
        f"classes ({listed(unknown)}); their objects count as missed"
    ]
