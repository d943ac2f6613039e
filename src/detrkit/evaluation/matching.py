"""Matching of detections and objects: COCO's matching for every IoU threshold at once, as columns.

hotcoco counts, and does not say cheaply which detection was counted for what; explanations, intervals and
thresholds need exactly that. The rules are those of pycocotools' ``evaluateImg`` for objects of all sizes, and the
tests hold them against its answers.

Shapes: D detections, N annotations, P pairs of the two, T IoU thresholds, C classes, I images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Self

import numpy as np
from hotcoco import mask as rle_masks

from detrkit.evaluation.truth import MOST_AREA, CocoTruth, as_rle

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""pycocotools' own values, to the last bit."""

LEAST_IOU = 0.1
"""Of a pair that is kept; below it a detection has nothing to do with an object (TIDE's background)."""

_MOST_PAIRS = 500_000


@dataclasses.dataclass(frozen=True)
class Columns:
    """Arrays of one length, a row of all of them for each thing that they describe."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def select(self, rows: np.ndarray) -> Self:
        """Return those at some rows, or where a mask is True."""
        return type(self)(*(None if column is None else column[rows] for column in vars(self).values()))


@dataclasses.dataclass(frozen=True)
class Found(Columns):
    """Detections of many images as columns, in the data set's own classes.

    Args:
        image_rows: Row of the truth's ``image_ids``, int64 ``[D]``.
        class_ids: Contiguous ids of the truth's class map, int64 ``[D]``.
        scores: float64 ``[D]``.
        boxes_xywh: float64 ``[D, 4]``, pixels.
        rle: Counts of each mask's RLE, str, object ``[D]``; None where there are no masks.
    """

    image_rows: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray
    boxes_xywh: np.ndarray
    rle: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Pairs(Columns):
    """Detections and objects of one image that overlap by ``LEAST_IOU`` or more, of the same class or not.

    Args:
        detections: Rows of the detections, int64 ``[P]``, ascending.
        objects: Rows of the truth's annotations, int64 ``[P]``.
        iou: float64 ``[P]``; with a crowd region, the share of the detection that lies inside.
    """

    detections: np.ndarray
    objects: np.ndarray
    iou: np.ndarray


@dataclasses.dataclass(frozen=True)
class Matches:
    """What became of every detection and every object.

    Args:
        truth: All annotations; ``measured`` says which count.
        rows: Images that are measured, rows of the truth, int64 ``[I]``, ascending.
        found: The detections that count: of each image and class the best ``max_detections``. Ordered by image,
            and by descending score within it.
        matched: Annotation that a detection found, -1 for none, int32 ``[T, D]``.
        ignored: Neither right nor wrong, bool ``[T, D]``: it found a crowd region, or another annotation that is
            ignored, or found nothing and is larger than COCO measures.
        found_by: Detection that found an object, -1 for none, int32 ``[T, N]``; -1 for what is ignored.
        measured: Objects to be found: in a measured image and not ignored, bool ``[N]``.
        pairs: Overlaps, for what matching does not tell.
    """

    truth: CocoTruth
    rows: np.ndarray
    found: Found
    matched: np.ndarray
    ignored: np.ndarray
    found_by: np.ndarray
    measured: np.ndarray
    pairs: Pairs

    @property
    def correct(self) -> np.ndarray:
        """Whether a detection counts as right, bool ``[T, D]``."""
        correct: np.ndarray = (self.matched >= 0) & ~self.ignored
        return correct

    def objects_by_class(self) -> np.ndarray:
        """Return objects to be found of each class, int64 ``[C]``."""
        counts: np.ndarray = np.bincount(self.truth.class_ids[self.measured], minlength=len(self.truth.class_map))
        return counts


def match_detections(
    truth: CocoTruth, found: Found, rows: np.ndarray, max_detections: int = 100, masks: bool = False
) -> Matches:
    """Match detections to objects as COCO does, at ``IOU_THRESHOLDS``.

    In order of score, each detection takes the free object of its class that it overlaps most, if by the threshold
    or more; what then remains may lie in crowd regions, which are never used up.

    Args:
        truth: The annotations.
        found: Detections of images in ``rows``, in any order; equal scores of an image keep theirs.
        rows: Images to measure on, int64, ascending.
        max_detections: Of each image and class.
        masks: Compare masks instead of boxes.
    """
    found = found.select(np.lexsort((-found.scores, found.image_rows)))
    found = found.select(_rank_in_class(found) < max_detections)
    in_rows = np.zeros(len(truth.image_ids), dtype=bool)
    in_rows[rows] = True
    measured_image = in_rows[truth.image_rows]
    if masks:
        pairs, area = _mask_pairs(truth, found, measured_image)
    else:
        pairs, area = overlapping_pairs(truth, found, measured_image), found.boxes_xywh[:, 2:].prod(axis=1)
    same = truth.class_ids[pairs.objects] == found.class_ids[pairs.detections]
    matched, found_by = match_pairs(pairs.select(same), truth, found)
    ignored = np.append(truth.ignored, False)[matched] | (
        (area > MOST_AREA) & (matched < 0)
    )  # False for a match of -1
    return Matches(truth, rows, found, matched, ignored, found_by, measured_image & ~truth.ignored, pairs)


def overlapping_pairs(truth: CocoTruth, found: Found, usable: np.ndarray) -> Pairs:
    """Pair detections (ordered by image) with the usable annotations of their images that they overlap."""
    objects = np.flatnonzero(usable)  # ordered by image, as the truth is
    images = truth.image_rows[objects]
    first = np.searchsorted(images, found.image_rows, side="left")
    counts = np.searchsorted(images, found.image_rows, side="right") - first
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for detections, places in partners(counts):
        own = objects[first[detections] + places]
        iou = box_iou(found.boxes_xywh[detections], truth.boxes_xywh[own], truth.iscrowd[own])
        near = iou >= LEAST_IOU
        parts.append((detections[near], own[near], iou[near]))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _mask_pairs(truth: CocoTruth, found: Found, usable: np.ndarray) -> tuple[Pairs, np.ndarray]:
    """Pair by masks as :func:`overlapping_pairs` does by boxes; and return the pixels of each detection's."""
    assert found.rle is not None
    encoded = as_rle(found.rle, truth.sizes_hw[found.image_rows])
    objects = np.flatnonzero(usable)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for row in np.unique(found.image_rows).tolist():
        first, last = np.searchsorted(found.image_rows, (row, row + 1)).tolist()
        own = objects[slice(*np.searchsorted(truth.image_rows[objects], (row, row + 1)))]
        if len(own):
            iou = rle_masks.iou(encoded[first:last], [truth.rle[i] for i in own], truth.iscrowd[own])
            detections, places = np.nonzero(iou >= LEAST_IOU)
            parts.append((first + detections, own[places], iou[detections, places]))
    area = np.array(rle_masks.area(encoded) if encoded else (), dtype=np.float64)
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True))), area


def partners(counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give each item with each place among its partners, ``_MOST_PAIRS`` at a time at most.

    Args:
        counts: Partners of each item, int ``[n]``.

    Yields:
        Items, ascending, and places 0, 1, 2, ... of their partners, int64 ``[P]`` each.
    """
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _MOST_PAIRS, side="right")))
        own = counts[start:stop]
        items = np.repeat(np.arange(start, stop), own)
        yield items, np.arange(len(items)) - np.repeat(ends[start:stop] - own - done, own)
        start = stop


def box_iou(first: np.ndarray, second: np.ndarray, crowd: np.ndarray | bool = False) -> np.ndarray:
    """Return IoU of boxes ``[P, 4]`` XYWH row by row, operation by operation as pycocotools: that decides ties.

    Where ``crowd`` (bool ``[P]``) is True, it is the share of the first box that lies inside the second.
    """
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, 2:] + first[:, :2], second[:, 2:] + second[:, :2])
    sides = np.maximum(high - low, 0)
    inner = sides[:, 0] * sides[:, 1]
    area = first[:, 2] * first[:, 3]
    union = np.where(crowd, area, area + second[:, 2] * second[:, 3] - inner)
    iou: np.ndarray = np.divide(inner, union, out=np.zeros_like(inner), where=inner > 0)
    return iou


def _rank_in_class(found: Found) -> np.ndarray:
    """Return each detection's place among those of its image and class, which are ordered by image and score."""
    order = np.lexsort((found.class_ids, found.image_rows))  # stable: keeps the order by score
    image, class_id = found.image_rows[order], found.class_ids[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (image[1:] != image[:-1]) | (class_id[1:] != class_id[:-1])
    return _unsorted(order, _places(begins))


def match_pairs(
    pairs: Pairs, truth: CocoTruth, found: Found, iou_thresholds: np.ndarray = IOU_THRESHOLDS
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``matched [T, D]`` and ``found_by [T, N]`` from pairs of the same class, ordered by detection."""
    thresholds = np.minimum(iou_thresholds, 1 - 1e-10)
    matched = np.full((len(thresholds), len(found)), -1, dtype=np.int32)
    found_by = np.full((len(thresholds), len(truth.iscrowd)), -1, dtype=np.int32)
    ignored = truth.ignored
    pairs = pairs.select(pairs.iou >= thresholds[0])
    # Of the objects that a detection may take, it takes the first: a real one before one that is ignored, the one
    # it overlaps most, and of equals the last.
    pairs = pairs.select(np.lexsort((-pairs.objects, -pairs.iou, ignored[pairs.objects], pairs.detections)))
    for row in _rounds(pairs, found):
        detections, objects = pairs.detections[row], pairs.objects[row]
        crowd = truth.iscrowd[objects]
        begins = np.flatnonzero(np.r_[True, detections[1:] != detections[:-1]])
        place = np.arange(len(row))
        for number, threshold in enumerate(thresholds):
            free = (pairs.iou[row] >= threshold) & (found_by[number, objects] < 0)  # crowd regions always are
            taken = np.minimum.reduceat(np.where(free, place, len(row)), begins)
            taken = taken[taken < len(row)]
            matched[number, detections[taken]] = objects[taken]
            real = taken[~crowd[taken]]
            found_by[number, objects[real]] = detections[real]
    found_by[:, ignored] = -1
    return matched, found_by


def _rounds(pairs: Pairs, found: Found) -> list[np.ndarray]:
    """Return rows of pairs in rounds: the best detection of every image and class, then the second best, ..."""
    if len(pairs.detections) == 0:
        return []
    begins = np.r_[True, pairs.detections[1:] != pairs.detections[:-1]]
    detections = pairs.detections[begins]
    turn = _rank_in_class(found.select(detections))[np.cumsum(begins) - 1]
    order = np.argsort(turn, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(turn[order])) + 1)


def _places(begins: np.ndarray) -> np.ndarray:
    """Return places 0, 1, 2, ... counted anew wherever a group begins."""
    positions = np.arange(len(begins))
    return positions - np.maximum.accumulate(np.where(begins, positions, 0))


def _unsorted(order: np.ndarray, values: np.ndarray) -> np.ndarray:
    result = np.empty_like(values)
    result[order] = values
    return result
