"""COCO metrics of boxes and masks (https://cocodataset.org/#detection-eval) by hotcoco, equal to pycocotools'.

Shapes: I images, K detections of one image, D detections in all, C classes of the data set,
T = 10 IoU thresholds (0.50 to 0.95), R = 101 recall thresholds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import hotcoco
import numpy as np
from hotcoco import mask as rle_masks

from detrkit.classes import ClassMap, match_classes
from detrkit.errors import DataError, UsageError
from detrkit.evaluation.panoptic import PanopticMetrics, measure_panoptic
from detrkit.evaluation.truth import CocoTruth, as_rle
from detrkit.types import ImageDetections

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MAX_DETECTIONS = 100  # of each image and class, COCO's own limit
ImageIds = Sequence[int] | Literal["all", "added"]
UNDEFINED = -1.0  # pycocotools' value where there is nothing to measure, such as APs without small objects


class ImageResults(NamedTuple):
    """Detections of one image as COCO's result format has them, which no arithmetic has touched.

    boxes_xywh: ``[K, 4]``, pixels. scores: ``[K]``. class_ids: ``[K]``, contiguous. float32 or float64.
    rle: Counts of COCO's compressed RLE of each mask, str, object ``[K]``; None where there are no masks.
    segments: Those of the panoptic picture, which share no pixel; None where there is no such picture.
    """

    boxes_xywh: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    rle: np.ndarray | None = None
    segments: ImageResults | None = None


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """The numbers of one class. AP and AP50 are ``UNDEFINED`` where the class has no objects."""

    name: str
    category_id: int
    objects: int
    AP: float
    AP50: float


@dataclasses.dataclass(frozen=True)
class CocoMetrics:
    """The result of an evaluation.

    Args:
        values: The twelve COCO numbers by :data:`METRIC_NAMES`, 0 to 1; ``UNDEFINED`` (-1) where there is
            nothing to measure. APs, APm, APl: objects under 32 x 32 pixels, up to 96 x 96, and above.
        per_class: One entry per class of the data set, by ascending category id.
        images: Images evaluated.
        objects: Annotated objects in them; what is ignored, such as crowd regions, is not counted.
        detections: Detections in them that were measured.
        max_detections: Detections per image and class that count; the ``100`` of ``AR100``.
        unmatched_classes: Classes of the model that the data set lacks; their detections were ignored.
        precision: Precision at each recall threshold for objects of all sizes, float64 ``[T, R, C]``,
            ``UNDEFINED`` for a class without objects.
    """

    values: Mapping[str, float]
    per_class: tuple[ClassMetrics, ...]
    images: int
    objects: int
    detections: int
    max_detections: int
    unmatched_classes: tuple[str, ...]
    precision: np.ndarray

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON: the twelve numbers at the top level, then ``per_class`` and the counts.

        What is undefined becomes None (``null``), so that no program averages a -1.
        """
        counts = ("images", "objects", "detections", "max_detections")
        return {
            **{name: known(value) for name, value in self.values.items()},
            **{name: getattr(self, name) for name in counts},
            "unmatched_classes": list(self.unmatched_classes),
            "per_class": [
                {**vars(entry), "AP": known(entry.AP), "AP50": known(entry.AP50)} for entry in self.per_class
            ],
        }


class BoxEvaluator:
    """Collects detections image by image as compact arrays, then measures them.

    The class map's ``class_id`` is carried to the data set's category by name, so a model from another
    annotation file of the same classes is measured rightly whatever its ids are; where a name repeats, the
    category id decides. No score threshold is applied.

    Args:
        truth: Annotations of the data set, see ``ground_truth_from_index``; AP leaves out segments of stuff.
        class_map: The classes that the detections speak of; the data set's own when not given.
        max_detections: Detections that count per image and class, best scores first, as in pycocotools.

    Raises:
        DataError: No class of the model is a class of the data set.
    """

    def __init__(self, truth: CocoTruth, class_map: ClassMap | None = None, max_detections: int = MAX_DETECTIONS):
        if max_detections < 1:
            raise UsageError(f"max_detections is {max_detections}, expected 1 or more")
        self.whole_truth, self.max_detections = truth, max_detections
        self.truth = truth.things()
        self.class_map = class_map or self.truth.class_map
        self._data_class_ids = match_classes(self.class_map, self.truth.class_map)
        self._row_by_image_id = self.truth.row_by_image_id()
        self._hotcoco_truths: dict[bool, hotcoco.COCO] = {}
        self._added: dict[int, ImageResults] = {}
        self._results: tuple[np.ndarray, np.ndarray | None] | None = None

    def __len__(self) -> int:
        return len(self._added)

    def add(self, image_id: int, detections: ImageDetections | ImageResults) -> None:
        """Take the detections of one image, in any order of score; those of a result file to the last digit.

        Raises:
            DataError: The annotations do not list the image, it was added before, or a number is not finite.
        """
        row = self._row_by_image_id.get(int(image_id))
        if row is None:
            raise DataError(
                f"image id {image_id} is not among the {len(self._row_by_image_id)} of the annotations"
            )
        if row in self._added:
            raise DataError(f"detections of image id {image_id} were added twice; start a new evaluator to repeat")
        results = _as_results(detections)
        if not (np.isfinite(results.scores).all() and np.isfinite(results.boxes_xywh).all()):
            raise DataError(
                f"the detections of image id {image_id} hold NaN or infinity, and cannot be measured: the weights "
                "hold such numbers, or the precision is too low for them; try float32"
            )
        self._added[row] = results
        self._results = None

    def packed(self) -> dict[int, ImageResults]:
        """Return all detections by image id, to be sent to another process and given to :meth:`add_packed`."""
        return {int(self.truth.image_ids[row]): self._added[row] for row in sorted(self._added)}

    def add_packed(self, packed: Mapping[int, ImageResults]) -> None:
        """Take another process's detections; images already here are skipped (samplers repeat some)."""
        for image_id, results in packed.items():
            if self._row_by_image_id.get(image_id) not in self._added:
                self.add(image_id, results)

    @property
    def has_masks(self) -> bool:
        """True if the detections have masks, and there are masks to measure them against."""
        return self.truth.masks is not None and any(one.rle is not None for one in self._added.values())

    @property
    def has_panoptic(self) -> bool:
        """True if there are panoptic pictures."""
        return any(one.segments is not None for one in self._added.values())

    def finish_all(self) -> Mapping[str, float]:
        """Return all numbers by name: of boxes, of masks (``mask_AP``, ...), and panoptic ones (PQ, ...)."""
        values = dict(self.finish().values)
        if self.has_masks:
            values |= {f"mask_{name}": value for name, value in self.finish(masks=True).values.items()}
        return {**values, **self.finish_panoptic().values} if self.has_panoptic else values

    def finish_panoptic(self, image_ids: ImageIds = "all") -> PanopticMetrics:
        """Measure the panoptic pictures that were added; an image without one counts as one without segments.

        Args:
            image_ids: As for :meth:`finish`.
        """
        return measure_panoptic(*self.segments(image_ids))

    def segments(self, image_ids: ImageIds = "all") -> tuple[CocoTruth, np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the arguments of :func:`measure_panoptic`."""
        rows = self._rows(image_ids)
        segments = [(self._added[row].segments if row in self._added else None) or _NOTHING for row in rows]
        return self.whole_truth, rows, *self._in_data_classes(rows, segments)

    def finish(self, image_ids: ImageIds = "all", masks: bool = False) -> CocoMetrics:
        """Measure what was added.

        Args:
            image_ids: Images to measure on. ``"all"`` of the annotations, so that an image never added counts
                as one where nothing was found; only the ``"added"`` ones; or the given ids.
            masks: Measure masks, by their own areas, instead of boxes.

        Raises:
            DataError: A given id is not in the annotations, or there is no image to measure on.
        """
        rows = self._rows(image_ids)
        evaluation = self.measure(image_ids, masks)
        limits = evaluation.params.max_dets
        curves = evaluation.eval
        assert curves is not None
        precision, recall = curves["precision"], curves["recall"]
        measured = np.isin(self.truth.image_rows, rows) & ~self.truth.ignored
        objects = np.bincount(self.truth.class_ids[measured], minlength=len(self.truth.class_map))
        matched = set(np.flatnonzero(self._data_class_ids >= 0).tolist())
        return CocoMetrics(
            values=_summary(precision, recall, limits),
            per_class=_per_class(precision, self.truth.class_map, objects),
            images=len(rows),
            objects=int(objects.sum()),
            detections=len(self.results(rows)),
            max_detections=self.max_detections,
            unmatched_classes=tuple(name for i, name in enumerate(self.class_map.names) if i not in matched),
            precision=np.ascontiguousarray(precision[:, :, :, 0, -1]),
        )

    def measure(self, image_ids: ImageIds = "all", masks: bool = False) -> hotcoco.COCOeval:
        """Return hotcoco's evaluation, accumulated, for the figures of its own such as error types.

        Its image ids are ``truth``'s rows + 1, its category ids the data set's class ids + 1.

        Args:
            image_ids: As for :meth:`finish`.
            masks: As for :meth:`finish`.

        Raises:
            DataError: As for :meth:`finish`.
        """
        rows = self._rows(image_ids)
        if len(rows) == 0:
            raise DataError("there are no images to evaluate; add detections or check the annotation file")
        if masks not in self._hotcoco_truths:
            self._hotcoco_truths[masks] = self.truth.to_hotcoco(masks)
        truth, found = self._hotcoco_truths[masks], self.results(rows)
        if masks:
            encoded = as_rle(self.masks(rows), self.truth.sizes_hw[found[:, 0].astype(np.int64) - 1])
            results = truth.load_res(found, segmentation=encoded)
            # by the area of the mask, as where a result has no box; not by the box's
            results.update_anns(ids=np.arange(1, len(found) + 1), area=mask_areas(encoded))
        else:
            results = truth.load_res(found)
        evaluation = hotcoco.COCOeval(truth, results, "segm" if masks else "bbox")
        evaluation.params.img_ids = (rows + 1).tolist()
        evaluation.params.max_dets = sorted(
            {min(limit, self.max_detections) for limit in (1, 10, self.max_detections)}
        )
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation

    def results(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the detections of the data set's classes in hotcoco's form, float64 ``[D, 7]``, ordered by image.

        Columns are row of the image + 1, x, y, width, height, score, class id of the data set + 1.

        Args:
            rows: Images, rows of the truth; all that were added if not given.
        """
        return self._of_rows(rows)[0]

    def masks(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the masks of :meth:`results`, object ``[D]``; one that is missing is empty."""
        rle = self._of_rows(rows)[1]
        assert rle is not None
        return rle

    def _of_rows(self, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        if self._results is None:
            present = np.array(sorted(self._added), dtype=np.int64)
            results = [self._added[row] for row in present.tolist()]
            self._results = self._in_data_classes(present, results, self.truth.class_map.stuff)
        columns, rle = self._results
        if rows is None or len(rows) == len(self.truth.image_ids):
            return self._results
        wanted = np.zeros(len(self.truth.image_ids) + 1, dtype=bool)
        wanted[rows + 1] = True
        chosen = wanted[columns[:, 0].astype(np.int64)]
        return columns[chosen], None if rle is None else rle[chosen]

    def _in_data_classes(
        self, rows: np.ndarray, results: Sequence[ImageResults], without: Sequence[int] = ()
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the detections of some rows in hotcoco's form, and their masks, those of the data's classes.

        Args:
            rows: Rows of the truth's images.
            results: Detections of each.
            without: Classes to leave out.
        """
        boxes, scores, class_ids, rle = _columns(results)
        images = np.repeat(rows, [len(one.scores) for one in results])
        data_class = self._data_class_ids[class_ids]
        columns = np.column_stack([images + 1, boxes.astype(np.float64), scores, data_class + 1])
        known_class = (data_class >= 0) & ~np.isin(data_class, without)
        return columns[known_class], None if rle is None else rle[known_class]

    def _rows(self, image_ids: ImageIds) -> np.ndarray:
        if isinstance(image_ids, str):
            if image_ids not in ("all", "added"):
                raise UsageError(f'image_ids is {image_ids!r}, expected "all", "added" or a list of image ids')
            rows: Sequence[int] = range(len(self.truth.image_ids)) if image_ids == "all" else sorted(self._added)
        else:
            unknown = [image_id for image_id in image_ids if int(image_id) not in self._row_by_image_id]
            if unknown:
                raise DataError(f"image ids {unknown[:5]} are not in the annotations ({len(unknown)} in all)")
            rows = sorted({self._row_by_image_id[int(image_id)] for image_id in image_ids})
        return np.array(rows, dtype=np.int64)


def mask_areas(encoded: list[Any]) -> np.ndarray:
    """Return the pixels of masks in COCO's RLE, float64 ``[K]``."""
    return np.asarray(rle_masks.area(encoded) if encoded else [], dtype=np.float64)


_NOTHING = ImageResults(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


def _columns(results: Sequence[ImageResults]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Return boxes, scores, class ids and masks (None where nobody has any) of all, one after the other."""
    every = [_NOTHING, *results]
    boxes, scores, class_ids = (np.concatenate([one[column] for one in every]) for column in range(3))
    if all(one.rle is None for one in results):
        return boxes, scores, class_ids, None
    empty = np.zeros(0, dtype=object)
    return boxes, scores, class_ids, np.concatenate([empty if one.rle is None else one.rle for one in every])


def _as_results(detections: ImageDetections | ImageResults) -> ImageResults:
    """Return a compact copy; sides of float32 corners are float32 arithmetic, as in the published DETR code."""
    class_ids = np.array(detections.class_ids, dtype=np.int32).reshape(-1)
    if isinstance(detections, ImageResults):
        boxes = np.array(detections.boxes_xywh).reshape(-1, 4)
        return detections._replace(
            boxes_xywh=boxes, scores=np.array(detections.scores).reshape(-1), class_ids=class_ids
        )
    boxes = np.array(detections.boxes_xyxy, dtype=np.float32).reshape(-1, 4)
    with np.errstate(invalid="ignore"):  # infinities are refused
        boxes[:, 2:] -= boxes[:, :2]
    return ImageResults(boxes, np.array(detections.scores, dtype=np.float32).reshape(-1), class_ids)


def _summary(precision: np.ndarray, recall: np.ndarray, limits: Sequence[int]) -> dict[str, float]:
    """Return the numbers of pycocotools' ``summarize``, with "AP" at the largest limit rather than always at 100.

    Args:
        precision: ``[T, R, C, 4, M]``: areas all, small, medium, large; M detection limits.
        recall: ``[T, C, 4, M]``.
        limits: Detections per image and class, ascending.
    """
    ten = limits.index(min(10, limits[-1]))
    parts = [precision[..., 0, -1], precision[0, ..., 0, -1], precision[5, ..., 0, -1]]
    parts += [precision[..., area, -1] for area in (1, 2, 3)]
    parts += [recall[..., 0, limit] for limit in (0, ten, -1)]
    parts += [recall[..., area, -1] for area in (1, 2, 3)]
    return {name: _mean(part) for name, part in zip(METRIC_NAMES, parts, strict=True)}


def _per_class(precision: np.ndarray, classes: ClassMap, objects: np.ndarray) -> tuple[ClassMetrics, ...]:
    rows = zip(classes.names, classes.category_ids, objects.tolist(), np.moveaxis(precision, 2, 0), strict=True)
    return tuple(
        ClassMetrics(name, category_id, count, _mean(own[:, :, 0, -1]), _mean(own[0, :, 0, -1]))
        for name, category_id, count, own in rows
    )


def _mean(values: np.ndarray) -> float:
    defined = values[values > UNDEFINED]
    return float(np.mean(defined)) if len(defined) else UNDEFINED


def known(value: float) -> float | None:
    """Return a value, None where it is undefined, so that nothing averages a -1."""
    return None if value == UNDEFINED or not math.isfinite(value) else float(value)
