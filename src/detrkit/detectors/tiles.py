"""Detection in tiles: a large image is cut into overlapping parts, and what several of them saw is counted once.

Shapes: K detections, P pairs of them. A tile is (left, top, right, bottom) in pixels of its image.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from detrkit.classes import SizeHW
from detrkit.detections import ImageDetections
from detrkit.detectors.detector import Detector
from detrkit.detectors.on_split import EvalTarget
from detrkit.detectors.stages import Stages, prepare
from detrkit.errors import UsageError
from detrkit.ops.boxes import broadcast_iou
from detrkit.preprocess import WASTE_LIMIT, group_by_size, image_size_hw

EXPECTED = "expected SIZE, SIZE/OVERLAP or SIZE/OVERLAP/only in pixels, such as 640, 640/128 or 640/128/only"
_FORM = re.compile(r"(\d+)(?:/(\d+))?(/only)?")
_SAME = 0.5  # IoU, in the area that two tiles share, from which on two detections are of one object
_MARGIN = 64  # part of a tile's side; a box that ends so near to its border may be cut off by it

Tile = tuple[int, int, int, int]
Target = TypeVar("Target", bound=EvalTarget)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How images are cut.

    Args:
        size: Sides of a tile in pixels; an image no larger is one tile.
        overlap: Pixels that neighbours share, at least. An object no larger is whole in one of the tiles.
        whole: Detect in the image as a whole too, for the objects larger than ``overlap``.
    """

    size: int
    overlap: int
    whole: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.overlap <= self.size // 2:
            raise UsageError(
                f"tiles of {self.size} pixels with an overlap of {self.overlap}: expected an overlap of 1 pixel "
                "to half a tile, best the size of the largest objects that are small"
            )

    @classmethod
    def parse(cls, text: str | int) -> Tiles:
        """Read ``640``, ``640/128``, or ``640/128/only`` for no pass over the whole image.

        Raises:
            UsageError: It is none of these.
        """
        found = _FORM.fullmatch(str(text).strip())
        if found is None:
            raise UsageError(f"tiles are {text!r}, {EXPECTED}")
        size = int(found[1])
        return cls(size, size // 5 if found[2] is None else int(found[2]), found[3] is None)

    def __str__(self) -> str:
        return f"{self.size}/{self.overlap}{'' if self.whole else '/only'}"

    def lay(self, size_hw: SizeHW) -> list[Tile]:
        """Return the tiles of an image, row by row and evenly spread, and the whole of it at the end if wished."""
        rows, columns = (self._spans(length) for length in size_hw)
        tiles = [(left, top, right, bottom) for top, bottom in rows for left, right in columns]
        if self.whole and len(tiles) > 1:
            tiles.append((0, 0, size_hw[1], size_hw[0]))
        return tiles

    def _spans(self, length: int) -> list[tuple[int, int]]:
        count = max(1, -(-(length - self.overlap) // (self.size - self.overlap)))
        starts = np.linspace(0, max(0, length - self.size), count).astype(int).tolist()
        return [(start, min(start + self.size, length)) for start in starts]


class _Tiled(NamedTuple):
    """Images, or what was found in them, by tile: pieces of all images in a row."""

    pieces: list[Any]
    tiles: list[list[Tile]]


class TiledStages:
    """Stages that run others on tiles.

    A tile is resized only when its batch is about to run, so that memory holds one batch of them, however large
    the image: latency counts that as the network's.

    Args:
        stages: The detector.
        tiles: How images are cut.
        batch_size: Tiles at once.
    """

    def __init__(self, stages: Stages, tiles: Tiles, batch_size: int):
        self.stages, self.tiles, self.batch_size = stages, tiles, batch_size
        self.network, self.device, self.pads = stages.network, stages.device, stages.pads
        self.has_masks = False

    def resize(self, image: Tensor) -> Tensor:
        """Return the image as it is."""
        return image

    def preprocess(self, images: Sequence[Tensor]) -> _Tiled:
        """Cut images."""
        tiles = [self.tiles.lay(image_size_hw(image)) for image in images]
        parts = zip(images, tiles, strict=True)
        pieces = [image[:, top:bottom, left:right] for image, of_it in parts for left, top, right, bottom in of_it]
        return _Tiled(pieces, tiles)

    def forward(self, inputs: _Tiled) -> _Tiled:
        """Run the network on tiles of similar sizes together."""
        sizes = [image_size_hw(piece) for piece in inputs.pieces]
        outputs = []
        for group in group_by_size(sizes, self.batch_size, WASTE_LIMIT if self.pads else 1.0):
            prepared = prepare(self.stages, [inputs.pieces[place] for place in group])
            outputs.append((group, self.stages.forward(prepared)))
        return _Tiled(outputs, inputs.tiles)

    def postprocess(self, outputs: _Tiled, orig_sizes_hw: Sequence[SizeHW]) -> list[ImageDetections]:
        """Return detections of each image in its pixels, those of an object that several tiles saw as one."""
        tiles = list(itertools.chain.from_iterable(outputs.tiles))
        by_place: dict[int, ImageDetections] = {}
        for group, found in outputs.pieces:
            sizes = [(tiles[place][3] - tiles[place][1], tiles[place][2] - tiles[place][0]) for place in group]
            by_place.update(zip(group, self.stages.postprocess(found, sizes), strict=True))
        in_order = iter([by_place[place] for place in range(len(tiles))])
        return [
            merge(list(itertools.islice(in_order, len(of_it))), of_it, self.tiles, size_hw)
            for of_it, size_hw in zip(outputs.tiles, orig_sizes_hw, strict=True)
        ]


def in_tiles(target: Target, tiles: Tiles | str | int | None, batch_size: int | None = None) -> Target:
    """Return a detector that sees images in tiles.

    Args:
        target: Detector.
        tiles: How images are cut; see :meth:`Tiles.parse`. None: not at all.
        batch_size: Tiles at once.

    Raises:
        UsageError: It is a file of detections, or the tiles are none.
    """
    if tiles is None:
        return target
    cut = tiles if isinstance(tiles, Tiles) else Tiles.parse(tiles)
    if not isinstance(target, Detector):
        raise UsageError(
            f"{target.name} is a file of detections, which cannot be made anew in tiles; give a model"
        )
    tiled = copy.copy(target)
    tiled.stages = TiledStages(target.stages, cut, batch_size or target.default_batch_size)
    tiled.settings = f"{target.settings} tiles {cut}"
    too = ", and in the whole image for objects larger than that" if cut.whole else ""
    how = f"Detected in tiles of {cut.size} pixels that share {cut.overlap}{too}."
    lost = ("Masks are not put together over tiles: boxes only.",)
    tiled.notes = (*target.notes, how, *(lost if target.has_masks else ()))
    return tiled


def merge(found: Sequence[ImageDetections], tiles: Sequence[Tile], how: Tiles, size_hw: SizeHW) -> ImageDetections:
    """Put the detections of tiles together: of one object that several saw, one is left.

    Two detections of one class, of different tiles, are of one object if their boxes agree (IoU of 0.5) in the
    area that both tiles see, however much of the object lies outside of it. The surest pairs come first, and an
    object has one detection of each tile at most: objects that overlap in a tile stay what they are. The object
    gets the best score, and the box of the surest that no border cuts off; where each is cut, the box around all.

    Args:
        found: Detections in pixels of each tile, best first.
        tiles: The tiles; with ``how.whole`` the last is the whole image.
        how: How the image was cut.
        size_hw: Size of the image.
    """
    if len(tiles) == 1:
        return ImageDetections(*found[0])
    # all in pixels of the image; the whole of it tells only of what can be cut off in every tile
    corners = np.array(tiles, dtype=np.float32)
    boxes = np.concatenate([one.boxes_xyxy + corners[i, [0, 1, 0, 1]] for i, one in enumerate(found)])
    scores = np.concatenate([one.scores for one in found])
    class_ids = np.concatenate([one.class_ids for one in found])
    owner = np.repeat(np.arange(len(tiles)), [len(one.scores) for one in found])
    if how.whole:
        keep = (owner < len(tiles) - 1) | ((boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) > how.overlap)
        boxes, scores, class_ids, owner = boxes[keep], scores[keep], class_ids[keep], owner[keep]
    # objects: detections joined by the surest pairs, each tile once
    object_of = np.arange(len(boxes))
    members = {i: [i] for i in range(len(boxes))}
    for first, second in _pairs(boxes, scores, class_ids, owner, corners):
        one, other = int(object_of[first]), int(object_of[second])
        if one == other or not {owner[i] for i in members[one]}.isdisjoint(owner[i] for i in members[other]):
            continue
        object_of[members[other]] = one
        members[one] += members.pop(other)
    # one detection of each
    is_cut = _cut(boxes, corners[owner], how.size / _MARGIN, size_hw)
    for of_it in members.values():
        if len(of_it) > 1:
            best = max(of_it, key=lambda i: (not is_cut[i], scores[i]))
            around = [*boxes[of_it, :2].min(axis=0), *boxes[of_it, 2:].max(axis=0)]
            boxes[of_it[0]] = around if is_cut[best] else boxes[best]
            scores[of_it[0]] = scores[of_it].max()
    kept = np.array([of_it[0] for of_it in members.values()], dtype=np.int64)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return ImageDetections(boxes[kept], scores[kept], class_ids[kept])


def _pairs(
    boxes: np.ndarray, scores: np.ndarray, class_ids: np.ndarray, owner: np.ndarray, corners: np.ndarray
) -> np.ndarray:
    """Return pairs of detections that agree in the area that their tiles share, the surest first, ``[P, 2]``."""
    pairs, weights = [np.empty((0, 2), np.int64)], [np.empty(0)]
    for one, other in itertools.combinations(range(len(corners)), 2):
        low, high = (
            np.maximum(corners[one, :2], corners[other, :2]),
            np.minimum(corners[one, 2:], corners[other, 2:]),
        )
        if (high <= low).any():
            continue
        # the parts of their boxes in it
        inside = np.concatenate([np.maximum(boxes[:, :2], low), np.minimum(boxes[:, 2:], high)], axis=1)
        seen = (inside[:, 2:] > inside[:, :2]).all(axis=1)
        first, second = (np.flatnonzero(seen & (owner == tile)) for tile in (one, other))
        sides = (torch.from_numpy(inside[first])[:, None], torch.from_numpy(inside[second])[None])
        iou = broadcast_iou(*sides).numpy()
        at = np.argwhere((iou >= _SAME) & (class_ids[first][:, None] == class_ids[second][None]))
        found = np.stack([first[at[:, 0]], second[at[:, 1]]], axis=1)
        pairs.append(found)
        weights.append(iou[at[:, 0], at[:, 1]] * scores[found].min(axis=1))
    order = np.argsort(-np.concatenate(weights), kind="stable")
    return np.concatenate(pairs)[order]


def _cut(boxes: np.ndarray, corners: np.ndarray, margin: float, size_hw: SizeHW) -> np.ndarray:
    """Return True for boxes that end at a border of their tile inside the image."""
    height, width = size_hw
    inner = np.concatenate([corners[:, :2] > 0, corners[:, 2:] < (width, height)], axis=1)
    near = np.concatenate([boxes[:, :2] < corners[:, :2] + margin, boxes[:, 2:] > corners[:, 2:] - margin], axis=1)
    result: np.ndarray = (inner & near).any(axis=1)
    return result
