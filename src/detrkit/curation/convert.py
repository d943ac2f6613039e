"""Conversion of a data set from any layout to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detrkit.classes import ClassMap
from detrkit.data.faults import Ledger
from detrkit.data.formats import FORMATS, WRITTEN_FORMATS, Layout, SplitFiles, find_splits
from detrkit.data.formats.output import Progress, WriteOptions
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_split_files
from detrkit.errors import UsageError


@dataclasses.dataclass(frozen=True)
class ConvertedSplit:
    """One split that was converted.

    Args:
        layout: Layout that it was read in.
        reason: Why it was taken for that.
        images: Number of images written.
        objects: Number of objects written.
        findings: What reading repaired and left out, in lines.
        ledger: Account of what the original has and what was written.
    """

    layout: str
    reason: str
    images: int
    objects: int
    findings: list[str]
    ledger: Ledger


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted data set.

    Args:
        path: Folder of it.
        format: Format that was written.
        classes: Names of the classes.
        notes: Sentences on what the format could not hold.
        splits: Converted splits by name.
        unfit: Reasons why it is not fit for training: most objects of a split, or all of a class, are lost.
    """

    path: Path
    format: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    splits: Mapping[str, ConvertedSplit]
    unfit: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def convert_data(
    data: str | Path,
    out: str | Path,
    to: str,
    *,
    layout: Layout = "auto",
    image_folder: Path | None = None,
    splits: Sequence[str] | None = None,
    copy: bool = False,
    decimals: bool = False,
    say: Callable[[str], None] = lambda _line: None,
    progress: Progress | None = None,
) -> Converted:
    """Write a data set in another layout; the original is not touched.

    Annotations are written as training reads them: boxes clipped to their image, those that cannot be used left
    out, images without a file left out; all of it is said, and :attr:`Converted.unfit` where it is too much. From
    COCO JSON to COCO, ids, masks and all other fields of the entries are kept.

    Args:
        data: Folder, COCO JSON file or data.yaml.
        out: New or empty folder.
        to: Format to write.
        layout: Layout to read; auto: by what lies there.
        image_folder: Folder of the images, where they lie elsewhere than the annotations.
        splits: Names of splits; all if not given.
        copy: Whether to copy images instead of linking them.
        decimals: Whether VOC gets fractions of pixels instead of whole ones.
        say: Function told what was recognised and repaired.
        progress: Function called with images written and images in all.

    Raises:
        UsageError: ``out`` is not empty, or there is no such format, folder or split.
        DataError: The data set cannot be read.
    """
    if to not in WRITTEN_FORMATS:
        raise UsageError(f"cannot write {to!r}; expected one of {', '.join(WRITTEN_FORMATS)}")
    found = find_splits(data, layout, splits, image_folder)
    read = {}
    converted = {}
    for split, files in found.items():
        index, report = read[split] = read_split_files(files)
        ledger = _written(index, report.ledger, to)
        counts = ledger.images_read, ledger.objects_read
        converted[split] = ConvertedSplit(files.layout, files.reason, *counts, report.lines(), ledger)
        say(f"{split}: {len(index)} images, {len(index.labels)} objects; {files.layout}: {files.reason}")
        for line in report.lines():
            say(line)
    parts = {split: (_from_one(index, found[split]), found[split].images) for split, (index, _) in read.items()}
    sources = {split: files.annotations for split, files in found.items() if files.format == "coco"}
    options = WriteOptions(copy=copy, progress=progress, sources=sources, decimals=decimals)
    notes = FORMATS[to].writer()(Path(out), parts, options)
    names = dict.fromkeys(name for index, _ in read.values() for name in index.class_map.names)
    unfit = (f"{split}: {reason}" for split, part in converted.items() for reason in part.ledger.losses())
    return Converted(Path(out), to, tuple(names), tuple(notes), converted, tuple(unfit))


def _written(index: CocoIndex, ledger: Ledger, to: str) -> Ledger:
    """Return the account of what is written of a split, where the format cannot hold all that was read."""
    crowds = 0 if FORMATS[to].has_crowds else int(index.iscrowd.sum())
    repeats = 0 if FORMATS[to].has_repeats else len(index) - len(index.merge_repeated())
    return dataclasses.replace(
        ledger,
        objects_read=ledger.objects_read - crowds,
        objects_left_out={**ledger.objects_left_out, **({"crowd_left_out": crowds} if crowds else {})},
        images_read=ledger.images_read - repeats,
        images_left_out={**ledger.images_left_out, **({"image_listed_twice": repeats} if repeats else {})},
    )


def _from_one(index: CocoIndex, files: SplitFiles) -> CocoIndex:
    """Number category ids from 1, as COCO has them, where the source counts from 0 by its format."""
    class_map = index.class_map
    if files.format != "yolo":
        return index
    ids = tuple(category_id + 1 for category_id in class_map.category_ids)
    return dataclasses.replace(index, class_map=ClassMap(class_map.names, ids))
