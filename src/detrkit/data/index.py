"""The annotations of a data set as a few arrays.

Python lists and dicts would be copied into every worker, object by object, as reference counts are touched;
arrays are shared between processes (lyuwenyu/RT-DETR issue 93).

Shapes: I images, N annotations of all of them.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detrkit.classes import ClassMap
from detrkit.data.masks import ObjectMasks
from detrkit.data.table import IdTexts
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
        masks: The mask of each; None unless asked for.
    """

    image_rows: np.ndarray
    labels: np.ndarray
    boxes_xywh: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    annotation_ids: np.ndarray
    file_rows: np.ndarray
    masks: ObjectMasks | None = None

    def select(self, rows: np.ndarray) -> WrittenAnnotations:
        """Return those of some of the images, in the given order; rows int64."""
        places = np.full(max(rows.max(initial=0), self.image_rows.max(initial=0)) + 1, -1, dtype=np.int64)
        places[rows] = np.arange(len(rows))
        image_rows = places[self.image_rows]
        kept = np.argsort(image_rows, kind="stable")[np.count_nonzero(image_rows < 0) :]
        columns = {name: column[kept] for name, column in vars(self).items() if name != "masks"}
        masks = None if self.masks is None else self.masks.select(kept)
        return WrittenAnnotations(**{**columns, "image_rows": image_rows[kept], "masks": masks})


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
        id_texts: Ids of images that are texts in the data set, str ``[I]``, empty where one is a number; no row at
            all if none is a text. Use :meth:`written_id` for whatever people or other programs read.
        category_id_texts: Ids of categories that are texts in the data set, by their number in ``class_map``.
        masks: The mask of each annotation; None unless asked for, or where the data set has none.
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
    id_texts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=str))
    category_id_texts: IdTexts = dataclasses.field(default_factory=dict)
    masks: ObjectMasks | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, row: int) -> str:
        """Return the file name of an image, relative to the image folder."""
        start, stop = self.name_offsets[row : row + 2]
        return self.name_bytes[start:stop].tobytes().decode("utf-8", "surrogateescape")

    def object_counts(self) -> np.ndarray:
        """Count the objects of each image, int64 ``[I]``; crowd regions are none: not trained on, not measured."""
        return np.diff(np.concatenate(([0], np.cumsum(~self.iscrowd)))[self.offsets])

    def written_id(self, row: int) -> int | str:
        """Return the id of an image as the data set has it: a number, or a text."""
        text = str(self.id_texts[row]) if len(self.id_texts) else ""
        return text or int(self.image_ids[row])

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
        images = dataclasses.replace(
            self,
            image_ids=self.image_ids[rows],
            name_bytes=name_bytes,
            name_offsets=name_offsets,
            sizes_hw=self.sizes_hw[rows],
            written=None if self.written is None else self.written.select(rows),
            id_texts=self.id_texts[rows] if len(self.id_texts) else self.id_texts,
        )
        return images._with_annotations(annotation_rows, counts)

    def things(self) -> CocoIndex:
        """Leave out the segments of stuff, and its classes."""
        if not self.class_map.stuff:
            return self
        is_thing = np.isin(np.arange(len(self.class_map)), self.class_map.stuff, invert=True)
        kept = np.flatnonzero(is_thing[self.labels])
        image_rows = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        part = self._with_annotations(kept, np.bincount(image_rows[kept], minlength=len(self)))
        labels = (np.cumsum(is_thing) - 1)[part.labels]
        class_map = self.class_map.select(np.flatnonzero(is_thing).tolist())
        return dataclasses.replace(part, class_map=class_map, labels=labels, written=None)

    def merge_repeated(self) -> CocoIndex:
        """Give all objects of a file that is listed several times to its first entry, and leave out the others."""
        first: dict[str, int] = {}
        target = np.array([first.setdefault(self.file_name(row), row) for row in range(len(self))], dtype=np.int64)
        if len(first) == len(self):
            return self
        image_rows = np.repeat(target, np.diff(self.offsets))
        counts = np.bincount(image_rows, minlength=len(self))
        merged = self._with_annotations(np.argsort(image_rows, kind="stable"), counts)
        return dataclasses.replace(merged, written=None).select(np.array(list(first.values()), dtype=np.int64))

    def _with_annotations(self, rows: np.ndarray, counts: np.ndarray) -> CocoIndex:
        """Take some of the annotations, in the given order, of which each image has so many."""
        return dataclasses.replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes_xyxy=self.boxes_xyxy[rows],
            labels=self.labels[rows],
            area=self.area[rows],
            iscrowd=self.iscrowd[rows],
            annotation_ids=self.annotation_ids[rows],
            masks=None if self.masks is None else self.masks.select(rows),
        )


def pack_names(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Pack file names into one array of bytes and the offsets of each; see :class:`CocoIndex`."""
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets


def leads_out(name: str) -> bool:
    """Return whether a file name is absolute or climbs out of its folder, whatever lies there."""
    normal = posixpath.normpath(name)
    return os.path.isabs(name) or posixpath.isabs(name) or normal == ".." or normal.startswith("../")  # noqa: PTH117


def check_inside(name: str, images: Path, *, links: bool = True) -> None:
    """Refuse a file name that leads out of the image folder: annotation files come from strangers.

    A link that lies in the folder is the user's own, as those of DVC, git-annex and the Hugging Face cache, and is
    followed; archives that detrkit unpacks cannot hold one. After ``..`` a link would lead where the name does not
    say, so then, too, the file itself has to be in the folder.

    Args:
        name: File name, relative to the folder.
        images: The folder.
        links: Whether the name may be, or lead through, a link to somewhere else.

    Raises:
        AnnotationError: It is absolute, climbs by ``..``, or is a link to somewhere else where that is not legal.
    """
    is_out = leads_out(name)
    if links and not is_out and ".." not in name:
        return
    root = os.path.realpath(images)
    resolved = os.path.join(root, name)  # noqa: PTH118 - pathlib has no faster spelling
    if not is_out:
        resolved = os.path.realpath(resolved)
        is_out = os.path.commonpath((root, resolved)) != root
    if is_out:
        raise AnnotationError(
            f"file_name {name!r} leads to {os.path.normpath(resolved)}, outside the image folder {root}; "
            "expected a path inside it: correct the annotation file"
        )


def list_folder(folder: Path) -> set[str]:
    """List the files in a folder; empty if there is no such folder, or there can be none."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except PermissionError:
        raise
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return set()
