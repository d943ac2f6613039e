"""Detections of an image, free of torch.

Shapes: K detections of one image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from detrkit.classes import ClassMap, SizeHW
from detrkit.masks import ImageMasks, PanopticSegments


class ImageDetections(NamedTuple):
    """Detections of one image, best first, in pixels of the original file.

    boxes_xyxy: float32 ``[K, 4]``. scores: float32 ``[K]``. class_ids: int64 ``[K]``, contiguous.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray

    @property
    def masks(self) -> ImageMasks | None:
        """The masks of a model that has them; see :class:`MaskedDetections`."""
        return None

    def take(self, keep: np.ndarray, scores: np.ndarray | None = None) -> ImageDetections:
        """Return some of the detections, by number or by a mask of them, with scores to be shown if given."""
        scores = self.scores if scores is None else scores
        return ImageDetections(self.boxes_xyxy[keep], scores[keep], self.class_ids[keep])


class MaskedDetections(ImageDetections):
    """Detections of one image with a mask each; a tuple of the same three to whoever asks for no masks."""

    _masks: ImageMasks

    @classmethod
    def join(cls, found: ImageDetections, masks: ImageMasks) -> MaskedDetections:
        """Give detections their masks."""
        joined = cls(*found)
        joined._masks = masks
        return joined

    @property
    def masks(self) -> ImageMasks:
        """The masks, in the order of the detections."""
        return self._masks

    def take(self, keep: np.ndarray, scores: np.ndarray | None = None) -> MaskedDetections:
        """See :meth:`ImageDetections.take`."""
        return self.join(super().take(keep, scores), self._masks.take(keep))

    def with_logits(self) -> MaskedDetections:
        """Return the same with the maps of all masks computed now, once, however often they are looked at."""
        order = np.argsort(self._masks.queries, kind="stable")
        logits = self._masks.take(order).logits()
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        held = dataclasses.replace(self._masks, compute=logits.__getitem__, queries=places)
        return self.join(ImageDetections(*self), held)

    def panoptic(
        self, stuff: Collection[int], *, score: float = 0.85, min_pixels: int = 4, union: bool = False
    ) -> PanopticSegments:
        """Merge all detections of more than a score into a panoptic picture; see :meth:`ImageMasks.merge`."""
        taken = self.take(self.scores > score)
        return taken.masks.merge(taken.scores, taken.class_ids, stuff, min_pixels=min_pixels, union=union)


@dataclasses.dataclass(frozen=True)
class Detections:
    """Detections of an image for people, with the fields of ``supervision.Detections``.

    Args:
        xyxy: Boxes in pixels of the image, float32 ``[K, 4]``.
        confidence: Scores, float32 ``[K]``.
        class_id: Contiguous class ids, int64 ``[K]``.
        data: ``class_name`` and ``category_id`` (the data set's id), ``[K]`` each.
        metadata: ``source`` and ``size_hw`` of the image.
        mask: Pixels of each, bool ``[K, H, W]``; None where the model has no masks.
    """

    xyxy: np.ndarray
    confidence: np.ndarray
    class_id: np.ndarray
    data: dict[str, np.ndarray]
    metadata: dict[str, Any]
    mask: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.xyxy)


def name_detections(
    found: ImageDetections,
    class_map: ClassMap,
    source: str = "",
    size_hw: SizeHW | None = None,
    mask_threshold: float = 0.5,
) -> Detections:
    """Add what people want to know of detections: names, category ids, where they come from, and their pixels."""
    class_ids = found.class_ids.astype(np.int64)
    names = np.array(class_map.names, dtype=np.str_)
    categories = np.array(class_map.category_ids, dtype=np.int64)
    metadata: dict[str, Any] = {"source": source}
    if size_hw is not None:
        metadata["size_hw"] = (int(size_hw[0]), int(size_hw[1]))
    return Detections(
        found.boxes_xyxy.astype(np.float32),
        found.scores.astype(np.float32),
        class_ids,
        {"class_name": names[class_ids], "category_id": categories[class_ids]},
        metadata,
        None if found.masks is None else found.masks.pixels(mask_threshold),
    )
