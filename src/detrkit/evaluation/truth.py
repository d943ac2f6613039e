"""The ground truth that detections are measured against, as columns.

Shapes: I images, N annotations, C classes of the data set.
"""

from __future__ import annotations

import dataclasses

import hotcoco
import numpy as np

from detrkit.classes import ClassMap
from detrkit.data.index import CocoIndex


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
    """

    image_ids: np.ndarray
    sizes_hw: np.ndarray
    image_rows: np.ndarray
    class_ids: np.ndarray
    boxes_xywh: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    class_map: ClassMap

    def row_by_image_id(self) -> dict[int, int]:
        """Return the row in ``image_ids`` of each of the data set's image ids."""
        return {image_id: row for row, image_id in enumerate(self.image_ids.tolist())}

    def to_hotcoco(self) -> hotcoco.COCO:
        """Return the same as hotcoco's object, with row + 1 as image id and class id + 1 as category id.

        The ids are replaced because results travel through float64, which cannot hold every 64-bit id, and
        because pycocotools counts an annotation of id 0 (where Roboflow's exports start) as never found.
        """
        sizes, names = enumerate(self.sizes_hw.tolist(), 1), enumerate(self.class_map.names, 1)
        images = [{"id": number, "height": height, "width": width} for number, (height, width) in sizes]
        categories = [{"id": number, "name": name} for number, name in names]
        columns = (self.image_rows + 1, self.class_ids + 1, self.boxes_xywh)
        return hotcoco.COCO.from_arrays(images, categories, *columns, area=self.area, iscrowd=self.iscrowd)


def ground_truth_from_index(index: CocoIndex) -> CocoTruth:
    """Return the ground truth that evaluation shares with training: the repaired annotations of an index.

    Coordinates keep the index's precision; see :class:`CocoTruth` on why float64 is better.
    """
    image_ids = np.asarray(index.image_ids, dtype=np.int64)
    offsets = np.asarray(index.offsets, dtype=np.int64)
    order = np.argsort(image_ids, kind="stable")
    row_of_position = np.empty_like(order)
    row_of_position[order] = np.arange(len(order))
    image_rows = np.repeat(row_of_position, np.diff(offsets))
    boxes = np.asarray(index.boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    class_map, new_class_ids = _by_category_id(index.class_map)
    by_image = np.argsort(image_rows, kind="stable")
    boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return CocoTruth(
        image_ids=image_ids[order],
        sizes_hw=np.asarray(index.sizes_hw, dtype=np.int64).reshape(-1, 2)[order],
        image_rows=image_rows[by_image],
        class_ids=new_class_ids[np.asarray(index.labels, dtype=np.int64)][by_image],
        boxes_xywh=boxes_xywh[by_image],
        area=np.asarray(index.area, dtype=np.float64)[by_image],
        iscrowd=np.asarray(index.iscrowd, dtype=bool)[by_image],
        class_map=class_map,
    )


def _by_category_id(class_map: ClassMap) -> tuple[ClassMap, np.ndarray]:
    """Return the classes by ascending category id, and the new class id of each old one."""
    order = np.argsort(np.array(class_map.category_ids, dtype=np.int64), kind="stable")
    new_ids = np.empty_like(order)
    new_ids[order] = np.arange(len(order))
    return class_map.select(order.tolist()), new_ids
