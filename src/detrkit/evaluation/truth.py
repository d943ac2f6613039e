"""The ground truth that detections are measured against, as columns.

Shapes: I images, N annotations, C classes of the data set.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hotcoco
import numpy as np

from detrkit.classes import ClassMap
from detrkit.data.index import CocoIndex, WrittenAnnotations
from detrkit.data.masks import ObjectMasks
from detrkit.ops.sources import MOST_READERS

logger = logging.getLogger(__name__)

MOST_AREA = 1e5**2
"""pycocotools ignores larger objects, and larger detections that found nothing."""


@dataclasses.dataclass(frozen=True)
class CocoTruth:
    """Every annotation of a data set, image after image.

    Args:
        image_ids: The data set's ids, int64 ``[I]``, ascending: COCO evaluation visits images in this order,
            and the order decides between detections of equal score.
        sizes_hw: int64 ``[I, 2]``.
        image_rows: Row of ``image_ids`` that each annotation belongs to, int64 ``[N]``.
        class_ids: Contiguous ids of ``class_map``, int64 ``[N]``.
        boxes_xywh: float64 ``[N, 4]``, pixels; float64 as in the JSON file, since rounding moves an IoU that
            lies on a threshold.
        area: float64 ``[N]``, the annotated area, which decides small, medium or large.
        iscrowd: bool ``[N]``.
        class_map: Classes of the data set, by ascending category id.
        annotation_ids: The data set's ids, which may repeat, int64 ``[N]``; None where they are not known.
        file_rows: Place of each annotation in its file, int64 ``[N]``; None where they are not known.
        image_keys: Fields that tell images apart in a file of results, ``[I]``; ``image_id`` alone if empty.
        category_id_texts: Ids of categories that are texts in the data set, by their number in ``class_map``.
        masks: Pixels of each annotation; None where these were not read.
        part_of: The annotations that these were taken from, and their rows, so that masks are encoded once.
    """

    image_ids: np.ndarray
    sizes_hw: np.ndarray
    image_rows: np.ndarray
    class_ids: np.ndarray
    boxes_xywh: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    class_map: ClassMap
    annotation_ids: np.ndarray | None = None
    file_rows: np.ndarray | None = None
    image_keys: Sequence[Mapping[str, int | str]] = ()
    category_id_texts: Mapping[int, str] = dataclasses.field(default_factory=dict)
    masks: ObjectMasks | None = None
    part_of: tuple[CocoTruth, np.ndarray] | None = None

    @property
    def ignored(self) -> np.ndarray:
        """Annotations that need not be found, by pycocotools' rule for objects of all sizes, bool ``[N]``."""
        return self.iscrowd | (self.area < 0) | (self.area > MOST_AREA)

    def select(self, rows: np.ndarray) -> CocoTruth:
        """Return the same images with some of the annotations; rows int64, ordered by image, or bool ``[N]``."""
        names = ("image_rows", "class_ids", "boxes_xywh", "area", "iscrowd", "annotation_ids", "file_rows")
        columns = {name: column[rows] for name in names if (column := getattr(self, name)) is not None}
        masks = None if self.masks is None else self.masks.select(np.arange(len(self.class_ids))[rows])
        return dataclasses.replace(self, **columns, masks=masks, part_of=None)

    def things(self) -> CocoTruth:
        """Return the same without segments of stuff, which cannot be counted."""
        if not self.class_map.stuff:
            return self
        rows = np.flatnonzero(~np.isin(self.class_ids, self.class_map.stuff))
        return dataclasses.replace(self.select(rows), part_of=(self, rows))

    @functools.cached_property
    def rle(self) -> list[Any]:
        """Masks of all annotations as COCO's compressed RLE, ``[N]``."""
        if self.part_of is not None:
            whole, rows = self.part_of
            return [whole.rle[row] for row in rows.tolist()]
        masks, unlisted = self.masks, Counter[str]()
        assert masks is not None

        def encode(rows: tuple[int, int], size_hw: list[int]) -> list[Any]:
            return masks.encode(np.arange(*rows), (size_hw[0], size_hw[1]), unlisted)

        # in threads, of which several decode PNG files at once
        ends = np.searchsorted(self.image_rows, np.arange(len(self.image_ids) + 1)).tolist()
        with ThreadPoolExecutor(min(MOST_READERS, os.cpu_count() or 1)) as pool:
            found = list(itertools.chain(*pool.map(encode, itertools.pairwise(ends), self.sizes_hw.tolist())))
        if unlisted:
            logger.warning(
                "%d segments of %d panoptic PNG files, such as %s, are in no list of segments: their pixels count "
                "as without a label; run detrkit data check",
                unlisted.total(),
                len(unlisted),
                next(iter(unlisted)),
            )
        return found

    def row_by_image_id(self) -> dict[int, int]:
        """Return the row in ``image_ids`` of each of the data set's image ids."""
        return {image_id: row for row, image_id in enumerate(self.image_ids.tolist())}

    def to_hotcoco(self, masks: bool = False) -> hotcoco.COCO:
        """Return the same as hotcoco's object, with row + 1 as image id and class id + 1 as category id.

        The ids are replaced because results travel through float64, which cannot hold every 64-bit id, and
        because pycocotools counts an annotation of id 0 (where Roboflow's exports start) as never found.
        """
        columns = (self.image_rows + 1, self.class_ids + 1, self.boxes_xywh)
        own = self.rle if masks else None
        images, categories = self.listing().values()
        return hotcoco.COCO.from_arrays(
            images, categories, *columns, area=self.area, iscrowd=self.iscrowd, segmentation=own
        )

    def listing(self) -> dict[str, list[dict[str, Any]]]:
        """Return the images and categories of :meth:`to_hotcoco`, by these names."""
        sizes, names = enumerate(self.sizes_hw.tolist(), 1), enumerate(self.class_map.names)
        images = [{"id": number, "height": height, "width": width} for number, (height, width) in sizes]
        stuff = set(self.class_map.stuff)
        categories = [
            {"id": class_id + 1, "name": name, "isthing": int(class_id not in stuff)} for class_id, name in names
        ]
        return {"images": images, "categories": categories}


def as_rle(counts: Iterable[str], sizes_hw: np.ndarray) -> list[Any]:
    """Return COCO's compressed RLE of masks, given their counts and the size of each one's image, ``[K, 2]``."""
    return [{"size": size_hw, "counts": count} for size_hw, count in zip(sizes_hw.tolist(), counts, strict=True)]


def ground_truth_from_index(index: CocoIndex) -> CocoTruth:
    """Return the ground truth of a split: the annotations as their file has them, see :class:`WrittenAnnotations`.

    What training clips or leaves out counts, as in pycocotools. An index without them gives its own annotations.
    """
    written = index.written or _from_corners(index)
    image_ids = np.asarray(index.image_ids, dtype=np.int64)
    order = np.argsort(image_ids, kind="stable")
    written = written.select(order)
    class_map, new_class_ids = _by_category_id(index.class_map)
    return CocoTruth(
        image_ids=image_ids[order],
        sizes_hw=np.asarray(index.sizes_hw, dtype=np.int64).reshape(-1, 2)[order],
        image_rows=written.image_rows,
        class_ids=new_class_ids[written.labels],
        boxes_xywh=written.boxes_xywh,
        area=written.area,
        iscrowd=written.iscrowd,
        class_map=class_map,
        annotation_ids=written.annotation_ids,
        file_rows=written.file_rows,
        image_keys=_image_keys(index, order),
        category_id_texts=index.category_id_texts,
        masks=written.masks,
    )


def _from_corners(index: CocoIndex) -> WrittenAnnotations:
    corners = np.asarray(index.boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    return WrittenAnnotations(
        image_rows=np.repeat(np.arange(len(index.image_ids)), np.diff(index.offsets)),
        labels=np.asarray(index.labels, dtype=np.int64),
        boxes_xywh=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        area=np.asarray(index.area, dtype=np.float64),
        iscrowd=np.asarray(index.iscrowd, dtype=bool),
        annotation_ids=np.arange(1, len(corners) + 1),
        file_rows=np.arange(len(corners)),
        masks=index.masks,
    )


def _image_keys(index: CocoIndex, order: np.ndarray) -> list[dict[str, int | str]]:
    """Return what names images in a file of results, beyond whole numbers that are their own."""
    rows = order.tolist()
    if index.is_numbered:
        return [{"image_id": int(index.image_ids[row]), "file_name": index.file_name(row)} for row in rows]
    return [{"image_id": index.written_id(row)} for row in rows] if len(index.id_texts) else []


def _by_category_id(class_map: ClassMap) -> tuple[ClassMap, np.ndarray]:
    """Return the classes by ascending category id, and the new class id of each old one."""
    order = np.argsort(np.array(class_map.category_ids, dtype=np.int64), kind="stable")
    new_ids = np.empty_like(order)
    new_ids[order] = np.arange(len(order))
    return class_map.select(order.tolist()), new_ids
