"""From mask maps of queries to masks in an image's pixels and to a panoptic picture. No torch here.

Shapes: K detections of one image, h x w cells of a mask map, H x W pixels of the image's file, S segments.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from detrkit.classes import SizeHW


def stretch_weights(positions: Any, cells: Any, pixels: Any, places: Any) -> Any:
    """Return how much each cell of one axis counts at some pixels, ``[..., P, n]``; arrays of NumPy or torch.

    Between the centres of two cells both count by their nearness, beyond the outer centres the outer cell alone:
    bilinear interpolation without aligned corners. Two products with such matrices stretch a map, and nothing
    outside its own cells plays a part.

    Args:
        positions: Numbers of the pixels, ``[..., P]``.
        cells: Cells that cover the pixels, ``[..., 1]``.
        pixels: Pixels that they cover, ``[..., 1]``.
        places: 0 to n - 1 of the whole map, ``[n]``.
    """
    centres = (positions + 0.5) * (cells / pixels) - 0.5
    return (1 - abs(centres.clip(cells * 0, cells - 1)[..., None] - places)).clip(0)


class _Axis(NamedTuple):
    """One axis of a stretched map.

    weights: of the cells at the pixels computed, float32 ``[P, h]``. places: which of these each pixel of the file
    shows, ``[H]``. counts: how many show each, ``[P]``.
    """

    weights: np.ndarray
    places: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImageMasks:
    """Masks of an image's detections, computed when they are asked for: of most detections, nobody wants to know.

    As published, a map is stretched over the pixels that the model saw, without padding, and those are spread over
    the pixels of the file by nearest neighbour; only pixels that the file shows are computed.

    Args:
        compute: Gives mask logits ``[K, h, w]`` of queries, int64 ``[K]``.
        queries: Query of each detection, int64 ``[K]``.
        cells_hw: Cells of a map.
        pixels_hw: Pixels that the cells cover.
        seen_hw: Pixels of the image as the model saw it, without padding; they lie at the top left.
        size_hw: Pixels of the image's file.
    """

    compute: Callable[[np.ndarray], np.ndarray]
    queries: np.ndarray
    cells_hw: SizeHW
    pixels_hw: SizeHW
    seen_hw: SizeHW
    size_hw: SizeHW

    def take(self, keep: np.ndarray) -> ImageMasks:
        """Return the masks of some detections, by number or by a mask of them."""
        return dataclasses.replace(self, queries=self.queries[keep])

    def logits(self) -> np.ndarray:
        """Return mask logits at the network's resolution, float32 ``[K, h, w]``."""
        return self.compute(self.queries)

    def pixels(self, threshold: float = 0.5) -> np.ndarray:
        """Return the pixels of each detection, bool ``[K, H, W]`` of the file; stretched first, then cut off."""
        rows, columns = self._axes()
        least = math.log(threshold / (1 - threshold))
        found = np.empty((len(self.queries), *self.size_hw), dtype=bool)
        for mask, logits in zip(found, self.logits(), strict=True):
            is_inside = rows.weights @ logits @ columns.weights.T > least
            np.take(is_inside[rows.places], columns.places, axis=1, out=mask)
        return found

    def encode(self, threshold: float = 0.5) -> list[dict[str, Any]]:
        """Return the pixels of each detection as COCO's compressed RLE, ``size`` and ``counts``."""
        return [encode_mask(mask) for mask in self.pixels(threshold)]

    def merge(
        self, scores: np.ndarray, class_ids: np.ndarray, stuff: Collection[int], *, min_pixels: int, union: bool
    ) -> PanopticSegments:
        """Merge all masks into a panoptic picture, each pixel going to the mask of the largest logit.

        As published: pixels of several masks of one stuff class go to the first of them; then segments of no more
        than ``min_pixels`` pixels are dropped, the emptied masks of stuff too, and what is left is merged anew
        until all segments are larger.

        Args:
            scores: Score of each mask, ``[K]``.
            class_ids: Class id of each mask, ``[K]``.
            stuff: Class ids of which there is one segment only.
            min_pixels: The greatest number of pixels for which a segment is dropped.
            union: Keep every pixel that any mask of a stuff class wins, which the published way loses again.
        """
        rows, columns = self._axes()
        order = np.argsort(self.queries, kind="stable")  # in the order of the published code, which has a first
        scores, class_ids = scores[order], class_ids[order]
        logits = self.compute(self.queries[order])
        maps = np.stack([rows.weights @ one @ columns.weights.T for one in logits]) if len(logits) else logits
        area = rows.counts[:, None] * columns.counts[None]
        # the first mask of the same stuff, for each mask
        firsts = np.arange(len(class_ids))
        for class_id in stuff:
            same = np.flatnonzero(class_ids == class_id)
            firsts[same] = same[:1]
        kept = np.arange(len(class_ids))
        while len(kept):
            winners = kept[maps[kept].argmax(axis=0)]
            if union or len(kept) == len(class_ids):
                winners = firsts[winners]
            areas = np.bincount(winners.ravel(), area.ravel(), len(class_ids)).astype(np.int64)
            large = areas[firsts[kept] if union else kept] > min_pixels
            if large.all():
                break
            kept = kept[large]
        if not len(kept):
            none = np.zeros(0, dtype=np.int64)
            return PanopticSegments(np.zeros(self.size_hw, dtype=np.int32), none, scores[none], none)
        segments = np.unique(firsts[kept]) if union else kept
        numbers = np.zeros(len(class_ids), dtype=np.int32)
        numbers[segments] = np.arange(1, len(segments) + 1)
        ids = numbers[winners][rows.places][:, columns.places]
        return PanopticSegments(ids, class_ids[segments].astype(np.int64), scores[segments], areas[segments])

    def _axes(self) -> tuple[_Axis, _Axis]:
        rows, columns = (
            _axis(*sizes) for sizes in zip(self.cells_hw, self.pixels_hw, self.seen_hw, self.size_hw, strict=True)
        )
        return rows, columns


def _axis(cells: int, pixels: int, seen: int, size: int) -> _Axis:
    steps = np.full(size, seen / size)
    steps[0] /= 2
    nearest = np.minimum(np.add.accumulate(steps).astype(np.int64), seen - 1)  # added up: Pillow's very rounding
    positions, places, counts = np.unique(nearest, return_inverse=True, return_counts=True)
    weights = stretch_weights(positions, np.array([cells]), np.array([pixels]), np.arange(cells))
    return _Axis(weights.astype(np.float32), places, counts)


@dataclasses.dataclass(frozen=True)
class PanopticSegments:
    """A panoptic picture: every pixel belongs to one segment, or to none.

    Args:
        ids: Number of each pixel's segment, from 1; 0 for none; int32 ``[H, W]``.
        class_ids: Class id of each segment, int64 ``[S]``.
        scores: Score of each segment, ``[S]``.
        areas: Pixels of each segment, int64 ``[S]``.
    """

    ids: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray
    areas: np.ndarray

    def colors(self) -> np.ndarray:
        """Return the picture of COCO panoptic, uint8 ``[H, W, 3]``: an id is R + 256 G + 256^2 B."""
        return np.stack([self.ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)

    def boxes_xywh(self) -> np.ndarray:
        """Return the bounds of each segment, int64 ``[S, 4]``."""
        found = np.zeros((len(self.class_ids), 4), dtype=np.int64)
        for number, box in enumerate(found, start=1):
            mask = self.ids == number
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            box[:] = columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
        return found


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask, bool ``[H, W]``, as COCO's compressed RLE."""
    from hotcoco import mask as rle

    encoded = rle.encode(mask)
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
