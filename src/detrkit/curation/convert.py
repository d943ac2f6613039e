"""Conversion of a data set from any layout to another."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detrkit.classes import ClassMap
from detrkit.curation.check.masks import read_mask_texts
from detrkit.data.faults import Ledger, ReadReport
from detrkit.data.formats import FORMATS, WRITTEN_FORMATS, Layout, SplitFiles, find_splits
from detrkit.data.formats.output import Progress, WriteOptions
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_split_files
from detrkit.errors import UsageError

_NO_MASK = len("null")
"""Longest text of a mask that is none: null, [], {}."""


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
    polygons: bool = False,
    stuff: bool = False,
    say: Callable[[str], None] = lambda _line: None,
    progress: Progress | None = None,
) -> Converted:
    """Write a data set in another layout; the original is not touched.

    Annotations are written as training reads them: boxes clipped to their image, those that cannot be used left
    out, images without a file left out; all of it is said, and :attr:`Converted.unfit` where it is too much. From
    COCO JSON to COCO, ids, masks and all other fields of the entries are kept; from COCO panoptic to itself, PNG
    files and entries as they are. Masks become what the format has: polygons, RLE, or segments, painted over each
    other by the rule of :func:`detrkit.data.formats.panoptic_write.paint_objects`.

    Args:
        data: Folder, COCO JSON file or data.yaml.
        out: New or empty folder.
        to: Format to write.
        layout: Layout to read; auto: by what lies there.
        image_folder: Folder of the images, where they lie elsewhere than the annotations.
        splits: Names of splits; all if not given.
        copy: Whether to copy images instead of linking them.
        decimals: Whether VOC gets fractions of pixels instead of whole ones.
        polygons: Whether YOLO gets polygons of objects with masks instead of boxes.
        stuff: Whether segments of stuff become objects, where the format has no stuff.
        say: Function told what was recognised and repaired.
        progress: Function called with images written and images in all.

    Raises:
        UsageError: ``out`` is not empty, or there is no such format, folder or split.
        DataError: The data set cannot be read, or has no masks where the format needs them.
    """
    if polygons and to != "yolo":
        raise UsageError(f"polygons are asked for in {to}, expected yolo: the other formats have masks, or none")
    if to not in WRITTEN_FORMATS:
        raise UsageError(f"cannot write {to!r}; expected one of {', '.join(WRITTEN_FORMATS)}")
    found = find_splits(data, layout, splits, image_folder)
    read: dict[str, tuple[CocoIndex, ReadReport]] = {}
    notes: list[str] = []
    for split, files in found.items():
        # masks of COCO JSON go from file to file
        masks = to == "panoptic" or polygons or (to == "coco" and files.format != "coco")
        index, report = read_split_files(files, masks=masks or files.format == "panoptic")
        if index.class_map.stuff and to != "panoptic":
            if stuff:
                notes.append(f"{split}: {to} cannot say what is stuff; back in panoptic, it would be things")
            else:
                index, report, told = _without_stuff(index, report, split)
                notes.append(told)
        if not masks:
            notes += _masks_lost(files, index, split, to)
        read[split] = index, report
        say(f"{split}: {len(index)} images, {len(index.labels)} objects; {files.layout}: {files.reason}")
        for line in report.lines():
            say(line)
    parts = {split: (_from_one(index, found[split]), found[split].images) for split, (index, _) in read.items()}
    options = WriteOptions(
        copy=copy,
        progress=progress,
        sources={split: files.annotations for split, files in found.items() if files.format == "coco"},
        decimals=decimals,
        polygons=polygons,
        panoptic=panoptic_sources(found) if to == "panoptic" else {},
    )
    notes += FORMATS[to].writer()(Path(out), parts, options)
    converted = {}
    for split, (index, report) in read.items():
        ledger = _written(index, report.ledger, to, options.left_out.get(split, {}))
        counts = ledger.images_read, ledger.objects_read
        files = found[split]
        converted[split] = ConvertedSplit(files.layout, files.reason, *counts, report.lines(), ledger)
    names = dict.fromkeys(name for index, _ in read.values() for name in index.class_map.names)
    unfit = (f"{split}: {reason}" for split, part in converted.items() for reason in part.ledger.losses())
    return Converted(Path(out), to, tuple(names), tuple(notes), converted, tuple(unfit))


def panoptic_sources(found: Mapping[str, SplitFiles]) -> dict[str, tuple[Path, Path]]:
    """Return the JSON file and the folder of PNG files of the splits that are COCO panoptic."""
    return {
        split: (files.annotations, files.listings[0])
        for split, files in found.items()
        if files.format == "panoptic"
    }


def _without_stuff(index: CocoIndex, report: ReadReport, split: str) -> tuple[CocoIndex, ReadReport, str]:
    """Leave out the segments of stuff, of the account too, since they are no objects; say how many they are."""
    things, names = index.things(), index.class_map.names
    segments = len(index.labels) - len(things.labels)
    ledger = dataclasses.replace(
        report.ledger,
        objects_found=report.ledger.objects_found - segments,
        objects_read=report.ledger.objects_read - segments,
        classes={
            name: counts
            for name, counts in report.ledger.classes.items()
            if name in things.class_map.names or name not in names
        },
    )
    told = f"{split}: {segments:,} segments of stuff are left out; as objects: --stuff"
    return things, dataclasses.replace(report, ledger=ledger), told


def _masks_lost(files: SplitFiles, index: CocoIndex, split: str, to: str) -> list[str]:
    """Say how many masks of COCO are not written."""
    texts = read_mask_texts(files) or []
    count = len(index.labels) if files.format == "panoptic" else sum(len(bytes(text)) > _NO_MASK for text in texts)
    hint = "; with polygons: --polygons" if to == "yolo" else ""
    return [f"{split}: the masks of {count:,} annotations are not written, their boxes are{hint}"] if count else []


def _written(index: CocoIndex, ledger: Ledger, to: str, unwritten: Mapping[tuple[str, str], int]) -> Ledger:
    """Return the account of what is written of a split, where the format cannot hold all that was read."""
    crowds = 0 if FORMATS[to].has_crowds else int(index.iscrowd.sum())
    kinds, classes = Counter({"crowd_left_out": crowds}), Counter[str]()
    for (kind, name), count in unwritten.items():
        kinds[kind] += count
        classes[name] += count
    repeats = 0 if FORMATS[to].has_repeats else len(index) - len(index.merge_repeated())
    return dataclasses.replace(
        ledger,
        objects_read=ledger.objects_read - kinds.total(),
        objects_left_out={**ledger.objects_left_out, **+kinds},
        classes={name: (found, read - classes[name]) for name, (found, read) in ledger.classes.items()},
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
