"""The annotations of a data set as a few arrays.

Python lists and dicts would be copied into every worker, object by object, as reference counts are touched;
arrays are shared between processes (lyuwenyu/RT-DETR issue 93).

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detrkit.classes import ClassMap
from detrkit.errors import AnnotationError


@dataclasses.dataclass(frozen=True)
class WrittenAnnotations:
    """Every annotation of a listed image and class as its file has it, image after image: what evaluation counts.

    Args:
        image_rows: Row of the index's images, int64 ``[N]``, ascending.
        labels: Contiguous class ids, int64 ``[N]``.
        boxes_xywh: The file's own float64, unclipped, ``[N, 4]``: an IoU may lie on a threshold.
        area: As written; of the box where none is, float64 ``[N]``.
        iscrowd: bool ``[N]``.
        annotation_ids: May repeat, int64 ``[N]``.
        file_rows: Place of each in its file, int64 ``[N]``.
    """

    image_rows: np.ndarray
    labels: np.ndarray
    boxes_xywh: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    annotation_ids: np.ndarray
    file_rows: np.ndarray

    def select(self, rows: np.ndarray) -> WrittenAnnotations:
        """Return those of some of the images, in the given order; rows int64."""
        places = np.full(max(rows.max(initial=0), self.image_rows.max(initial=0)) + 1, -1, dtype=np.int64)
        places[rows] = np.arange(len(rows))
        image_rows = places[self.image_rows]
        kept = np.argsort(image_rows, kind="stable")[np.count_nonzero(image_rows < 0) :]
        columns = {name: column[kept] for name, column in vars(self).items()}
        return WrittenAnnotations(**{**columns, "image_rows": image_rows[kept]})


@dataclasses.dataclass(frozen=True)
class CocoIndex:
    """Every image and annotation of a data set, image after image, repaired as training needs it.

    Args:
        image_ids: The data set's ids, int64 ``[I]``.
        name_bytes: All file names in UTF-8, one after the other, uint8.
        name_offsets: Start of each name, int64 ``[I + 1]``.
        sizes_hw: Pixels as annotated, int32 ``[I, 2]``.
        offsets: Annotations of image i are rows ``offsets[i]:offsets[i + 1]`` of the rest, int64 ``[I + 1]``.
        boxes_xyxy: Pixels, inside the image, float64 ``[N, 4]``.
        labels: Contiguous class ids, int64 ``[N]``.
        area: Area as annotated, in pixels, float64 ``[N]``; of the box where none is given.
        iscrowd: bool ``[N]``.
        annotation_ids: The data set's ids, int64 ``[N]``.
        class_map: The classes that ``labels`` counts.
        written: The annotations as evaluation counts them; None where these are those of the index.
        is_numbered: The format has no image ids, so that images are numbered from 1 in the order of names.
    """

    image_ids: np.ndarray
    name_bytes: np.ndarray
    name_offsets: np.ndarray
    sizes_hw: np.ndarray
    offsets: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    annotation_ids: np.ndarray
    class_map: ClassMap
    written: WrittenAnnotations | None = None
    is_numbered: bool = False

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, row: int) -> str:
        """Return the file name of an image, relative to the image folder."""
        start, stop = self.name_offsets[row : row + 2]
        return self.name_bytes[start:stop].tobytes().decode("utf-8", "surrogateescape")

    def object_counts(self) -> np.ndarray:
        """Count the objects of each image, int64 ``[I]``; crowd regions are none: not trained on, not measured."""
        return np.diff(np.concatenate(([0], np.cumsum(~self.iscrowd)))[self.offsets])

    def annotation_rows(self, row: int) -> slice:
        """Return the rows of the annotation arrays that belong to an image."""
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))

    def select(self, rows: np.ndarray) -> CocoIndex:
        """Select some of the images, in the given order; rows int64."""
        counts = np.diff(self.offsets)[rows]
        annotation_rows = np.concatenate(
            [np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows] or [np.zeros(0, np.int64)]
        )
        name_bytes, name_offsets = pack_names([self.file_name(int(row)) for row in rows])
        return dataclasses.replace(
            self,
            image_ids=self.image_ids[rows],
            name_bytes=name_bytes,
            name_offsets=name_offsets,
            sizes_hw=self.sizes_hw[rows],
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes_xyxy=self.boxes_xyxy[annotation_rows],
            labels=self.labels[annotation_rows],
            area=self.area[annotation_rows],
            iscrowd=self.iscrowd[annotation_rows],
            annotation_ids=self.annotation_ids[annotation_rows],
            written=None if self.written is None else self.written.select(rows),
        )


def pack_names(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Pack file names into one array of bytes and the offsets of each; see :class:`CocoIndex`."""
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets


def missing_images(index: CocoIndex, images: Path) -> np.ndarray:
    """List the rows of images whose file does not exist, int64; every folder is listed once.

    Raises:
        AnnotationError: A file name leads out of ``images``, by ``..``, as an absolute path or by a link.
    """
    rows_by_folder: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in range(len(index)):
        folder, _, name = index.file_name(row).rpartition("/")
        rows_by_folder[folder].append((row, name))
    missing: list[int] = []
    for folder, entries in rows_by_folder.items():
        check_inside(f"{folder}/{entries[0][1]}" if folder else entries[0][1], images)
        is_link = list_folder(images / folder)
        for row, name in entries:
            if name not in is_link:
                missing.append(row)
            elif is_link[name]:
                check_inside(f"{folder}/{name}" if folder else name, images)
    return np.array(sorted(missing), dtype=np.int64)


def check_inside(name: str, images: Path) -> None:
    """Refuse a file name that leads out of the image folder: annotation files come from strangers.

    Raises:
        AnnotationError: It is absolute, climbs by ``..``, or is a link to somewhere else.
    """
    root = os.path.realpath(images)
    resolved = os.path.realpath(os.path.join(root, name))  # noqa: PTH118 - pathlib has no faster spelling
    if os.path.isabs(name) or os.path.commonpath((root, resolved)) != root:  # noqa: PTH117
        raise AnnotationError(
            f"file_name {name!r} leads to {resolved}, outside the image folder {root}; "
            "expected a path inside it: correct the annotation file, or replace the link by the file"
        )


def list_folder(folder: Path) -> dict[str, bool]:
    """List the files in a folder, and whether each is a link; empty if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
