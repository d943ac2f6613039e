"""Reading a data set in any layout and writing it in another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detrkit.classes import ClassMap
from detrkit.config import DataConfig
from detrkit.data.faults import ReadReport
from detrkit.data.formats import (
    FORMATS,
    WRITTEN_FORMATS,
    Layout,
    SplitFiles,
    canonical_split,
    find_split,
    find_splits,
)
from detrkit.data.formats.output import Progress, WriteOptions
from detrkit.data.index import CocoIndex
from detrkit.data.read import read_split_files
from detrkit.errors import UsageError


@dataclasses.dataclass(frozen=True)
class ConvertedSplit:
    """One split that was converted: where it came from, what it holds, what was repaired on reading."""

    files: SplitFiles
    images: int
    objects: int
    report: ReadReport


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted data set.

    Args:
        path: Its folder.
        format: What was written.
        splits: By name.
        classes: Their names.
        notes: What the format could not hold, in words.
    """

    path: Path
    format: str
    splits: Mapping[str, ConvertedSplit]
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "path": str(self.path),
            "format": self.format,
            "classes": list(self.classes),
            "notes": list(self.notes),
            "splits": {
                name: {
                    "layout": split.files.layout,
                    "reason": split.files.reason,
                    "images": split.images,
                    "objects": split.objects,
                    "findings": split.report.lines(),
                }
                for name, split in self.splits.items()
            },
        }


def convert_data(
    data: str | Path,
    out: str | Path,
    to: str,
    *,
    layout: Layout = "auto",
    splits: Sequence[str] | None = None,
    copy: bool = False,
    decimals: bool = False,
    say: Callable[[str], None] = lambda _line: None,
    progress: Progress | None = None,
) -> Converted:
    """Write a data set in another layout; the original is not touched.

    Annotations are written as training reads them: boxes clipped to their image, those that cannot be used left
    out, images without a file left out; all of it is said. From COCO JSON to COCO, ids, masks and all other fields
    of the entries are kept.

    Args:
        data: Folder, COCO JSON file or data.yaml.
        out: New or empty folder.
        to: Format to write.
        layout: Layout to read; auto: by what lies there.
        splits: Names of splits; all if not given.
        copy: Copy images instead of linking them.
        decimals: For VOC: fractions of pixels instead of whole ones.
        say: Told what was recognised and repaired.
        progress: Called with images written and images in all.

    Raises:
        UsageError: ``out`` is not empty, or there is no such format, folder or split.
        DataError: The data set cannot be read.
    """
    write = FORMATS[to].write if to in FORMATS else None
    if write is None:
        raise UsageError(f"cannot write {to!r}; expected one of {', '.join(WRITTEN_FORMATS)}")
    found = _found(data, layout, splits)
    read = {split: read_split_files(files) for split, files in found.items()}
    for split, (index, report) in read.items():
        files = found[split]
        say(f"{split}: {len(index)} images, {len(index.labels)} objects; {files.layout}: {files.reason}")
        for line in report.lines():
            say(line)
    parts = {split: (_from_one(index, found[split]), found[split].images) for split, (index, _) in read.items()}
    sources = {split: files.annotations for split, files in found.items() if files.format == "coco"}
    options = WriteOptions(copy=copy, progress=progress, sources=sources, decimals=decimals)
    written = write(Path(out), parts, options)
    return Converted(
        path=written.path,
        format=to,
        splits={
            split: ConvertedSplit(found[split], len(index), len(index.labels), report)
            for split, (index, report) in read.items()
        },
        classes=tuple(dict.fromkeys(name for index, _ in read.values() for name in index.class_map.names)),
        notes=written.notes,
    )


def _found(data: str | Path, layout: Layout, splits: Sequence[str] | None) -> dict[str, SplitFiles]:
    if not splits:
        return find_splits(data, layout)
    config = DataConfig(layout=layout)
    return {canonical_split(name): find_split(data, name, config) for name in splits}


def _from_one(index: CocoIndex, files: SplitFiles) -> CocoIndex:
    """The index with category ids from 1, as COCO has them, where the source counts from 0 by its format."""
    class_map = index.class_map
    if files.format != "yolo":
        return index
    ids = tuple(category_id + 1 for category_id in class_map.category_ids)
    return dataclasses.replace(index, class_map=ClassMap(class_map.names, ids))
