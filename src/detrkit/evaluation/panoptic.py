"""Panoptic quality (arXiv:1801.00868) by hotcoco, equal to panopticapi's, and where it is lost.

hotcoco counts, and does not say which segment was counted for what; intervals and reasons need that. The rules are
those of panopticapi: pixels without a label are left out of a union; a segment that lies in them, or in a crowd
region of its class, by more than half is no error; the crowd region of a class in an image is its last.

Shapes: I images, N segments of the annotations, D found segments, C classes of the data set, S resamples.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from hotcoco import mask as rle_masks
from hotcoco.panoptic import METRIC_NAMES, PanopticEval
from PIL import Image

from detrkit.evaluation.truth import CocoTruth, as_rle

LOSSES = ("boundary", "class", "merged", "split", "misplaced", "missed", "false")
"""What takes from PQ, by code; the first of segments that were found."""
FOUND, EXCUSED = 0, -1

SAMPLE = 500
"""Annotated pictures, at most, that are held against their entries before hotcoco reads all; evenly spread."""

_LEAST_IOU = 0.1  # of a segment that is misplaced, not missed


@dataclasses.dataclass(frozen=True)
class PanopticClass:
    """The numbers of one class; PQ, SQ and RQ are -1 where there is no segment of it, annotated or found."""

    name: str
    category_id: int
    is_thing: bool
    PQ: float
    SQ: float
    RQ: float
    found: int
    false: int
    missed: int


@dataclasses.dataclass(frozen=True)
class PanopticMetrics:
    """Panoptic quality.

    Args:
        values: PQ, SQ and RQ of all classes, of things (``PQ_th``) and of stuff (``PQ_st``), 0 to 1; -1 where
            there is no segment.
        per_class: One entry per class of the data set, by ascending category id.
        segments: Annotated segments, without crowd regions.
    """

    values: Mapping[str, float]
    per_class: tuple[PanopticClass, ...]
    segments: int


def measure_panoptic(
    truth: CocoTruth, rows: np.ndarray, columns: np.ndarray, rle: np.ndarray | None
) -> PanopticMetrics:
    """Measure panoptic pictures.

    Args:
        truth: Annotations, segments of stuff too.
        rows: Images to measure on, rows of the truth.
        columns: Found segments in hotcoco's form, ``[D, 7]``.
        rle: Their masks, object ``[D]``.
    """
    known = truth.to_hotcoco(masks=True)
    if len(rows) < len(truth.image_ids):
        known = known.filter(img_ids=(rows + 1).tolist(), drop_empty_images=False)
    found = known.load_res(columns, segmentation=_encoded(truth, columns, rle))
    return read_metrics(PanopticEval(known, found), truth)


def measure_files(truth: CocoTruth, found: Iterable[tuple[int, int, tuple[str, int]]]) -> PanopticMetrics:
    """Measure PNG files by hotcoco's own reader, in threads, in a fraction of the time of Pillow's.

    Areas it would take from the annotations, unless these have none. Only found pictures it holds against their
    entries: so a sample of the annotated ones is first read as found. In the others a number that no entry has is
    a segment of no class, as for panopticapi; mask by mask its pixels are without a label.

    Args:
        truth: Annotations, segments of PNG files.
        found: Row of the image, class id, and file and id of each found segment.

    Raises:
        ValueError: A file is damaged, of another size, or its ids are not those of its entries; or an image has
            several files. Reading it mask by mask says more, or can do with it.
        OSError: A file cannot be opened.
    """
    assert truth.masks is not None
    rows, classes, crowds = truth.image_rows.tolist(), truth.class_ids.tolist(), truth.iscrowd.tolist()
    known = _pictures(zip(rows, classes, map(truth.masks.segment, range(len(rows))), crowds, strict=True))
    seen = _pictures((*segment, False) for segment in found)
    listing = truth.listing()
    with tempfile.TemporaryDirectory() as folder:
        for row in known.keys() - seen.keys():
            height, width = truth.sizes_hw[row].tolist()
            blank = Path(folder, f"{height}-{width}.png")
            if not blank.exists():
                Image.new("RGB", (width, height)).save(blank)
            seen[row] = {"image_id": row + 1, "file_name": str(blank), "segments_info": []}
        files = [Path(folder, name) for name in ("known.json", "seen.json")]
        for file, pictures in zip(files, (known, seen), strict=True):
            file.write_bytes(msgspec.json.encode({**listing, "annotations": list(pictures.values())}))
        some = list(known)[:: -(-len(known) // SAMPLE) or 1]
        blank_truth = {**listing, "images": [listing["images"][row] for row in some], "annotations": []}
        PanopticEval(blank_truth, files[0], pred_folder=Path()).evaluate()
        return read_metrics(PanopticEval(*files, gt_folder=Path(), pred_folder=Path()), truth)


def _pictures(segments: Iterable[tuple[int, int, tuple[str, int], bool]]) -> dict[int, dict[str, Any]]:
    """Return the entries of pictures, of COCO panoptic, by the row of the image."""
    pictures: dict[int, dict[str, Any]] = {}
    for row, class_id, (file, number), crowd in segments:
        entry = {"image_id": row + 1, "file_name": file, "segments_info": {}}
        known = pictures.setdefault(row, entry)
        if known["file_name"] != file or number in known["segments_info"]:
            raise ValueError(f"{file}: an image has several files, or a segment is listed twice")
        known["segments_info"][number] = {"id": number, "category_id": class_id + 1, "iscrowd": int(crowd)}
    return {row: {**one, "segments_info": list(one["segments_info"].values())} for row, one in pictures.items()}


def read_metrics(evaluation: PanopticEval, truth: CocoTruth) -> PanopticMetrics:
    """Evaluate, and return the numbers by the classes of the truth, whose ids + 1 are the categories'."""
    evaluation.evaluate()
    values = dict(zip(METRIC_NAMES, evaluation.stats, strict=True))
    classes, results = truth.class_map, evaluation.results()["per_class"]
    per_class = []
    for class_id, (name, category_id) in enumerate(zip(classes.names, classes.category_ids, strict=True)):
        own: Mapping[str, Any] = results[class_id + 1]
        shares, counts = ([own[key] for key in keys] for keys in (("pq", "sq", "rq"), ("tp", "fp", "fn")))
        per_class.append(PanopticClass(name, category_id, class_id not in classes.stuff, *shares, *counts))
    return PanopticMetrics(values, tuple(per_class), sum(entry.found + entry.missed for entry in per_class))


@dataclasses.dataclass(frozen=True)
class SegmentMatches:
    """What became of every segment.

    Args:
        truth: Annotations.
        rows: Images that were measured, int64 ``[I]``.
        image_rows: Image of each found segment, int64 ``[D]``.
        class_ids: Its class, int64 ``[D]``.
        rle: Its mask, object ``[D]``.
        iou: IoU with the annotated segment that it found, 0 for none, float64 ``[D]``.
        found_loss: Code of ``LOSSES`` of each found segment; ``EXCUSED`` where it is no error, int64 ``[D]``.
        object_loss: Likewise of each annotated one; ``EXCUSED`` for crowd regions, int64 ``[N]``.
    """

    truth: CocoTruth
    rows: np.ndarray
    image_rows: np.ndarray
    class_ids: np.ndarray
    rle: np.ndarray
    iou: np.ndarray
    found_loss: np.ndarray
    object_loss: np.ndarray

    def parts(self) -> np.ndarray:
        """Return what is lost of each kind (a segment without partner counts half), float64 ``[I, C, kinds + 1]``.

        The last is what a class could win in an image: found segments and half of each that has no partner.
        """
        truth, classes = self.truth, len(self.truth.class_map)
        kinds = len(LOSSES)
        parts = np.zeros((len(truth.image_ids) * classes, kinds + 1))
        sides = (
            (
                self.image_rows,
                self.class_ids,
                self.found_loss,
                np.where(self.found_loss == FOUND, 1 - self.iou, 0.5),
            ),
            (truth.image_rows, truth.class_ids, self.object_loss, np.full(len(self.object_loss), 0.5)),
        )
        for number, (images, class_ids, losses, weight) in enumerate(sides):
            # a pair is counted once, where it was found
            counted = losses > FOUND if number else losses >= FOUND
            cells = (images * classes + class_ids)[counted]
            np.add.at(parts, (cells, losses[counted]), weight[counted])
            np.add.at(parts, (cells, kinds), np.where(losses[counted] == FOUND, 1.0, 0.5))
        cells_of_images: np.ndarray = parts.reshape(-1, classes, kinds + 1)[self.rows]
        return cells_of_images

    def losses(self) -> dict[str, float]:
        """Return the PQ that each kind takes, 0 to 1: together exactly what PQ lacks to 1."""
        parts = self.parts().sum(axis=0)
        possible = parts[:, -1] > 0
        shares = parts[possible, :-1] / parts[possible, -1:]
        return dict(
            zip(LOSSES, shares.mean(axis=0).tolist() if possible.any() else [0.0] * len(LOSSES), strict=True)
        )

    def counts(self) -> dict[str, tuple[int, int]]:
        """Count annotated and found segments of each kind."""
        sides = [
            np.bincount(losses[losses >= 0], minlength=len(LOSSES))
            for losses in (self.object_loss, self.found_loss)
        ]
        return dict(zip(LOSSES, zip(*(side.tolist() for side in sides), strict=True), strict=True))

    def quality(self) -> np.ndarray:
        """Return PQ of each image over its segments, whatever their class; NaN without any, float64 ``[I]``."""
        parts = self.parts().sum(axis=1)
        possible = parts[:, -1]
        lost = parts[:, :-1].sum(axis=1)
        quality: np.ndarray = 1 - np.divide(lost, possible, out=np.full(len(lost), np.nan), where=possible > 0)
        return quality

    def resampled(self, weights: Iterator[np.ndarray]) -> np.ndarray:
        """Return PQ of resamples of the images, ``[S]``, given how often each counts, ``[I, s]`` at a time."""
        parts = self.parts()
        lost, possible = parts[..., :-1].sum(axis=-1).T, parts[..., -1].T
        found = []
        for chunk in weights:
            could, lacks = possible @ chunk, lost @ chunk
            shares = np.divide(could - lacks, could, out=np.zeros_like(could), where=could > 0)
            found.append(shares.sum(axis=0) / np.maximum((could > 0).sum(axis=0), 1))
        return np.concatenate(found) if found else np.zeros(0)


def match_segments(
    truth: CocoTruth, rows: np.ndarray, columns: np.ndarray, rle: np.ndarray | None
) -> SegmentMatches:
    """Find out what became of every segment; arguments as for :func:`measure_panoptic`."""
    encoded = _encoded(truth, columns, rle)
    image_rows, class_ids = columns[:, [0, 6]].T.astype(np.int64) - 1
    order = np.argsort(image_rows, kind="stable")
    iou = np.zeros(len(columns))
    found_loss = np.full(len(columns), EXCUSED, dtype=np.int64)
    object_loss = np.full(len(truth.class_ids), EXCUSED, dtype=np.int64)
    object_ends, found_ends = (
        np.searchsorted(images, np.arange(len(truth.image_ids) + 1))
        for images in (truth.image_rows, image_rows[order])
    )
    for row in rows.tolist():
        objects = np.arange(*object_ends[row : row + 2])
        found = order[slice(*found_ends[row : row + 2])]
        inside = rle_masks.iou([encoded[i] for i in found], [truth.rle[i] for i in objects], [True] * len(objects))
        found_area, object_area = (
            np.array(rle_masks.area(masks) if masks else (), dtype=np.float64)
            for masks in ([encoded[i] for i in found], [truth.rle[i] for i in objects])
        )
        shared = np.rint(np.reshape(inside, (len(found), len(objects))) * found_area[:, None])
        same = class_ids[found][:, None] == truth.class_ids[objects][None]
        iou[found], found_loss[found], object_loss[objects] = _explain(
            shared, found_area, object_area, same, truth.iscrowd[objects]
        )
    return SegmentMatches(truth, rows, image_rows, class_ids, np.asarray(rle), iou, found_loss, object_loss)


def _explain(
    shared: np.ndarray, found_area: np.ndarray, object_area: np.ndarray, same: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return IoU and loss of each found segment of an image, and the loss of each annotated one.

    Args:
        shared: Pixels that both have, float64 ``[D, N]``.
        found_area: Pixels of found segments, ``[D]``.
        object_area: Pixels of annotated segments, ``[N]``.
        same: Whether their classes are the same, bool ``[D, N]``.
        crowd: Annotated segments that are regions of many things, bool ``[N]``.
    """
    void = found_area - shared.sum(axis=1)
    iou = shared / np.maximum(found_area[:, None] + object_area - shared - void[:, None], 1)
    real = np.where(crowd, 0, iou)
    pairs = same & (real > 0.5)
    # a segment in void, or in the last crowd region of its class, is no error
    regions = same & crowd
    last = regions & (np.cumsum(regions[:, ::-1], axis=1)[:, ::-1] == 1)
    excused = void + (shared * last).sum(axis=1) > 0.5 * found_area
    # what explains the others, the first that does
    of_object = np.where(same & ~crowd, shared / np.maximum(object_area, 1), 0)  # shares of annotated segments
    of_found = np.where(same & ~crowd, shared / np.maximum(found_area, 1)[:, None], 0)
    swallows = (of_object > 0.5).sum(axis=1) > 1
    pieces = of_found > 0.5
    is_split = (pieces.sum(axis=0) > 1) & (np.where(pieces, of_object, 0).sum(axis=0) > 0.5)
    other_class = ~same & (real > 0.5)
    near = same & (real >= _LEAST_IOU)
    found_reasons = [pairs.any(1), other_class.any(1), swallows, (pieces & is_split).any(1), near.any(1)]
    object_reasons = [
        pairs.any(0),
        other_class.any(0),
        ((of_object > 0.5) & swallows[:, None]).any(0),
        is_split,
        near.any(0),
    ]
    found_loss = np.select(found_reasons, range(5), LOSSES.index("false"))
    object_loss = np.select(object_reasons, range(5), LOSSES.index("missed"))
    found_loss[excused & ~found_reasons[0]] = EXCUSED
    object_loss[crowd] = EXCUSED
    return np.where(pairs, real, 0).max(axis=1, initial=0), found_loss, object_loss


def _encoded(truth: CocoTruth, columns: np.ndarray, rle: np.ndarray | None) -> list[Any]:
    return as_rle([] if rle is None else rle, truth.sizes_hw[columns[:, 0].astype(np.int64) - 1])
