"""The formats that annotations come in, in one table: a new one is a folder here and an entry in it."""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from detrkit.data.formats.base import SplitCandidates, SplitFiles
from detrkit.data.formats.coco.find import find_coco, find_coco_by_content, find_coco_elsewhere
from detrkit.data.formats.coco.read import load_coco_table
from detrkit.data.formats.panoptic import find_panoptic, load_panoptic_table
from detrkit.data.formats.voc.read import find_voc, load_voc_table
from detrkit.data.formats.yolo.find import find_yolo, find_yolo_folders
from detrkit.data.formats.yolo.read import load_yolo_table
from detrkit.data.table import AnnotationTable

BoxFormat = Literal["xywh", "xyxy", "cxcywh"]


@dataclasses.dataclass(frozen=True)
class Format:
    """One annotation format.

    Args:
        title: name for people
        looked_for: title and the places that are searched, for messages
        find: ways of looking for splits in a folder, by their place in the order of those of all formats
        read: reads a split, with masks if the second argument says so; nothing is repaired
        write: module and function that writes a data set into a new folder, imported when it is used; empty if the
            format is only read
        box_format: numbers that the format writes for a box
        has_crowds: whether the format can hold crowd regions
        has_repeats: whether the format can list an image twice
    """

    title: str
    looked_for: str
    find: Mapping[int, Callable[[Path], SplitCandidates]]
    read: Callable[[SplitFiles, bool], AnnotationTable]
    write: str
    box_format: BoxFormat
    has_crowds: bool = True
    has_repeats: bool = False

    def writer(self) -> Callable[..., Any]:
        """Import the function that writes; it takes the folder, the splits, and the options."""
        writer: Callable[..., Any] = pkgutil.resolve_name(f"detrkit.data.formats.{self.write}")
        return writer


# The first way of looking that finds anything wins: COCO JSON in its standard places, what data.yaml names, VOC,
# labels by folders, then JSON files in other folders, which are mostly conversions of one of the others.
FORMATS: Mapping[str, Format] = {
    "coco": Format(
        title="COCO JSON",
        looked_for="COCO JSON (annotations/instances_*.json, <split>/_annotations.coco.json, <split>.json, "
        "_annotations.coco.json)",
        find={0: find_coco, 4: find_coco_elsewhere, 5: find_coco_by_content},
        read=lambda files, masks: load_coco_table(files.annotations, masks),
        write="coco.write:write_coco",
        box_format="xywh",
        has_repeats=True,
    ),
    "yolo": Format(
        title="YOLO",
        looked_for="YOLO (data.yaml, images/ with labels/, lists of images)",
        find={1: find_yolo, 3: find_yolo_folders},
        read=load_yolo_table,
        write="yolo.write:write_yolo",
        box_format="cxcywh",
        has_crowds=False,
    ),
    "voc": Format(
        title="Pascal VOC",
        looked_for="Pascal VOC (Annotations/*.xml with images)",
        find={2: find_voc},
        read=lambda files, _masks: load_voc_table(files),
        write="voc.write:write_voc",
        box_format="xyxy",
    ),
    "panoptic": Format(
        title="COCO panoptic",
        looked_for="COCO panoptic (annotations/panoptic_*.json)",
        find={6: find_panoptic},
        read=load_panoptic_table,
        write="panoptic_write:write_panoptic",
        box_format="xywh",
    ),
}
"""Every format by the name that ``--layout`` and ``data.layout`` know; those that can be written, ``--to`` too."""
WRITTEN_FORMATS = tuple(name for name, format_ in FORMATS.items() if format_.write)
