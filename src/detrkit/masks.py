"""From mask maps of queries to masks in an image's pixels and to a panoptic picture; masks through augmentation.

No torch here. Shapes: K detections or n objects of one image, h x w cells of a mask map, H x W pixels of the
image's file, S segments.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from detrkit.classes import SizeHW

_SPREAD = 0x9E3779
"""Odd, so that no two of its multiples modulo 2**24 are alike; near the golden ratio, so that they lie apart."""


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
        found = np.empty((len(self.queries), *self.size_hw), dtype=bool)
        for number, mask in enumerate(self.each(threshold)):
            found[number] = mask
        return found

    def encode(self, threshold: float = 0.5) -> list[dict[str, Any]]:
        """Return the pixels of each detection as COCO's compressed RLE, ``size`` and ``counts``."""
        return [encode_mask(mask) for mask in self.each(threshold)]

    def each(self, threshold: float) -> Iterator[np.ndarray]:
        """Give the pixels of one detection after the other, bool ``[H, W]``, in the same array."""
        rows, columns = self._axes()
        least = math.log(threshold / (1 - threshold))
        mask = np.empty(self.size_hw, dtype=bool)
        for logits in self.logits():
            is_inside = rows.weights @ logits @ columns.weights.T > least
            yield np.take(is_inside[rows.places], columns.places, axis=1, out=mask)

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
        """Return the picture of COCO panoptic, uint8 ``[H, W, 3]``; R + 256 G + 256^2 B is :func:`spread_ids`."""
        ids = spread_ids(self.ids)
        return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)

    def boxes_xywh(self) -> np.ndarray:
        """Return the bounds of each segment, int64 ``[S, 4]``."""
        from hotcoco import mask as rle

        encoded = encode_ids(self.ids)
        boxes = [rle.to_bbox(encoded[number]) for number in range(1, len(self.class_ids) + 1)]
        return np.array(boxes, dtype=np.int64).reshape(-1, 4)


class MaskPatch(NamedTuple):
    """A mask, cut to a part of its image that holds all of its pixels: bool ``[h, w]`` from row and column."""

    top: int
    left: int
    pixels: np.ndarray

    @classmethod
    def of_mask(cls, mask: np.ndarray) -> MaskPatch:
        """Cut out of the mask of a whole image, bool ``[H, W]``."""
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return cls(0, 0, mask[:0, :0])
        top, left = int(rows[0]), int(columns[0])
        return cls(top, left, mask[top : rows[-1] + 1, left : columns[-1] + 1].copy())


class _Frame(NamedTuple):
    """Row and column of an image that each of a picture made of it shows, -1 for none; ``[H]``, ``[W]``."""

    rows: np.ndarray
    columns: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class LazyMasks:
    """The masks of a target's objects, drawn when the picture is finished.

    Flips, crops, resizes and borders take along either axis, for each pixel of their result, one of what they are
    given, or none. So two vectors say where all pixels of an image went, and a mask is decoded once, to be looked
    up: the same to the pixel as doing each step to each mask.

    Args:
        patches: Functions that give the mask of each object.
        is_given: False where something else stands in for a mask, which then teaches nothing, bool ``[n]``.
        frames: Ways of the pixels of each image of which the picture is made.
        owners: Number of the frame of each object, int64 ``[n]``.
    """

    patches: tuple[Callable[[], MaskPatch], ...]
    is_given: np.ndarray
    frames: tuple[_Frame, ...]
    owners: np.ndarray

    @classmethod
    def of_image(
        cls, patches: Sequence[Callable[[], MaskPatch]], is_given: np.ndarray, size_hw: SizeHW
    ) -> LazyMasks:
        """Return the masks of an image as it is; each is decoded once, when it is first looked at."""
        frame = _Frame(*(np.arange(side) for side in size_hw))
        owners = np.zeros(len(patches), dtype=np.int64)
        return cls(tuple(map(functools.cache, patches)), is_given, (frame,), owners)

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def size_hw(self) -> SizeHW:
        """Size of the picture."""
        return len(self.frames[0].rows), len(self.frames[0].columns)

    def flip(self, *, vertical: bool = False) -> LazyMasks:
        """Mirror left and right, or top and bottom."""
        return self._moved(
            lambda side: side[::-1] if vertical else side, lambda side: side if vertical else side[::-1]
        )

    def crop(self, top: int, left: int, height: int, width: int) -> LazyMasks:
        """Cut out a rectangle, which lies inside."""
        return self._moved(lambda side: side[top : top + height], lambda side: side[left : left + width])

    def resize(self, size_hw: SizeHW) -> LazyMasks:
        """Resize; each pixel is the one that its centre lies in."""
        height, width = size_hw
        return self._moved(
            lambda side: side[nearest(len(side), height)], lambda side: side[nearest(len(side), width)]
        )

    def pad(self, top: int, left: int, size_hw: SizeHW) -> LazyMasks:
        """Place on a canvas, the upper left corner at (top, left)."""
        height, width = size_hw
        return self._moved(lambda side: _on_canvas(side, top, height), lambda side: _on_canvas(side, left, width))

    def take(self, keep: np.ndarray) -> LazyMasks:
        """Return the masks of some of the objects, by number or by a mask of them."""
        numbers = np.arange(len(self))[keep]
        patches = tuple(self.patches[number] for number in numbers)
        return LazyMasks(patches, self.is_given[numbers], self.frames, self.owners[numbers])

    def join(self, others: Sequence[LazyMasks]) -> LazyMasks:
        """Return the masks of several targets on one canvas."""
        parts = (self, *others)
        starts = np.cumsum([0, *(len(part.frames) for part in parts[:-1])])
        owners = [part.owners + start for part, start in zip(parts, starts, strict=True)]
        patches, frames = (
            [one for part in parts for one in getattr(part, name)] for name in ("patches", "frames")
        )
        is_given = np.concatenate([part.is_given for part in parts])
        return LazyMasks(tuple(patches), is_given, tuple(frames), np.concatenate(owners))

    def areas(self) -> np.ndarray:
        """Count the pixels of each object, int64 ``[n]``."""
        counts = [np.count_nonzero(self.visible(number)[1]) for number in range(len(self))]
        return np.array(counts, dtype=np.int64)

    def draw(self, number: int, picture: np.ndarray) -> None:
        """Draw the mask of one object into an empty picture, bool, at least ``[H, W]``."""
        place, pixels = self.visible(number)
        picture[place] = pixels

    def pixels(self) -> np.ndarray:
        """Draw the masks of all objects, bool ``[n, H, W]``."""
        drawn = np.zeros((len(self), *self.size_hw), dtype=bool)
        for number, picture in enumerate(drawn):
            self.draw(number, picture)
        return drawn

    def visible(self, number: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """Return the part of the picture, rows and columns, that has all pixels of an object, and them in it."""
        patch, frame = self.patches[number](), self.frames[self.owners[number]]
        places, sources = [], []
        for shown, start, length in zip(frame, (patch.top, patch.left), patch.pixels.shape, strict=True):
            inside = np.flatnonzero(
                (shown >= start) & (shown < start + length)
            )  # in one piece, as all steps leave it
            place = slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0)
            places.append(place)
            sources.append(_as_slice(shown[place] - start))
        return (places[0], places[1]), patch.pixels[sources[0]][:, sources[1]]

    def _moved(
        self, rows: Callable[[np.ndarray], np.ndarray], columns: Callable[[np.ndarray], np.ndarray]
    ) -> LazyMasks:
        frames = tuple(_Frame(rows(frame.rows), columns(frame.columns)) for frame in self.frames)
        return dataclasses.replace(self, frames=frames)


def _as_slice(places: np.ndarray) -> np.ndarray | slice:
    """Return places as a slice where they are one after the other, up or down: nothing is copied then."""
    for step in (1, -1):
        if len(places) and places[-1] - places[0] == step * (len(places) - 1) and (np.diff(places) == step).all():
            end = int(places[-1]) + step
            return slice(int(places[0]), end if end >= 0 else None, step)
    return places


def nearest(length: int, wanted: int) -> np.ndarray:
    """Return the pixel of a side in which the centre of each lies after a resize, int64 ``[wanted]``."""
    places: np.ndarray = (2 * np.arange(wanted) + 1) * length // (2 * wanted)
    return places


def _on_canvas(side: np.ndarray, start: int, length: int) -> np.ndarray:
    canvas = np.full(length, -1, dtype=np.int64)
    canvas[start : start + len(side)] = side
    return canvas


def spread_ids(numbers: Any) -> Any:
    """Return ids below 2**24 whose colours differ; those of numbers from 1 all look black. 0 stays 0."""
    return numbers * _SPREAD & 0xFFFFFF


def segments_info(
    segments: PanopticSegments, category_ids: Sequence[int | str], iscrowd: Sequence[bool] = ()
) -> list[dict[str, Any]]:
    """Return what a panoptic file says of the segments of a picture; none is a crowd region if not said."""
    columns = (segments.class_ids, segments.areas, segments.boxes_xywh())
    return [
        {
            "id": spread_ids(number),
            "category_id": category_ids[class_id],
            "area": area,
            "bbox": box,
            "iscrowd": int(bool(iscrowd) and iscrowd[number - 1]),
        }
        for number, (class_id, area, box) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), start=1
        )
    ]


def differing_pixels(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the share of pixels in which two masks of one size differ, given as COCO's compressed RLE."""
    from hotcoco import mask as rle

    first, second = (rle.decode({**mask, "counts": mask["counts"].encode()}) for mask in (one, other))
    return float((first != second).mean())


def encode_ids(ids: np.ndarray) -> dict[int, dict[str, Any]]:
    """Return the mask of every number of an id map, int32 ``[H, W]``, as COCO's compressed RLE, all in one go."""
    from hotcoco import mask as rle

    flat = ids.T.ravel()  # down the columns, as RLE counts
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if len(flat) else np.zeros(0, int)
    ends, numbers = np.append(starts[1:], len(flat)), flat[starts]
    order = np.argsort(numbers, kind="stable")
    height, width = ids.shape
    found = {}
    for runs in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else ():
        edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=len(flat))
        counts = counts if counts[-1] else counts[:-1]
        encoded = rle.fr_py_objects({"size": [height, width], "counts": counts.tolist()}, height, width)
        found[int(numbers[runs[0]])] = {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
    return found


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask, bool ``[H, W]``, as COCO's compressed RLE."""
    from hotcoco import mask as rle

    encoded = rle.encode(mask)
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
