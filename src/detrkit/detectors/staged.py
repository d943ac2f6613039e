"""Detectors of other toolkits, run over a split in their three stages."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from detrkit.classes import ClassMap, SizeHW
from detrkit.data.coco import CocoDataset
from detrkit.data.split import Split
from detrkit.detectors.on_split import ImageChange
from detrkit.detectors.stages import Progress, Stages
from detrkit.evaluation.coco import MAX_DETECTIONS
from detrkit.types import ImageDetections

GPU_BATCH_SIZE = 8

_WINDOW_BATCHES = 4  # batches read at once, among which images of one size are put together
_MOST_READERS = 8


class StagedSubject:
    """A detector that is run by its stages.

    Only images of one size share a batch. Many of these detectors see the padding of a batch, so that other
    images beside one would change what is found in it.

    Args:
        name: What people call it.
        kind: The toolkit it comes from.
        class_map: Classes of its detections.
        stages: How it is run.
        settings: All that its detections depend on besides its weights, as text.
    """

    def __init__(self, name: str, kind: str, class_map: ClassMap, stages: Stages, settings: str):
        self.name = name
        self.kind = kind
        self.class_map = class_map
        self.stages: Stages | None = stages
        self.max_detections = MAX_DETECTIONS
        self.settings = settings
        self._stages = stages

    def bind(self, _split: Split, /) -> StagedSubject:
        """Itself: it knows its classes."""
        return self

    def detect(
        self,
        split: Split,
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
        change: ImageChange | None = None,
    ) -> Iterator[tuple[int, ImageDetections]]:
        """As :class:`~detrkit.detectors.stages.Subject` says; one image at once on a CPU if nothing is said."""
        size = batch_size or (1 if self._stages.device.type == "cpu" else GPU_BATCH_SIZE)
        done = 0
        for rows, images in _same_sized(split, size, change):
            inputs = self._stages.preprocess(images)
            found = self._stages.postprocess(self._stages.forward(inputs), [_size_hw(image) for image in images])
            for row, detections in zip(rows, found, strict=True):
                yield int(split.index.image_ids[row]), detections
            done += len(rows)
            if progress is not None:
                progress(done)


def labelled_detections(
    boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, classes: np.ndarray
) -> ImageDetections:
    """Detections of one image, best first, from a network's tensors.

    Args:
        boxes_xyxy: ``[K, 4]``, pixels of the image's file.
        scores: ``[K]``.
        labels: The network's own labels, ``[K]``.
        classes: Class id of each label, -1 for a label that is no class, such as background; int64.
    """
    class_ids = classes[labels.cpu().numpy()]
    all_scores = scores.float().cpu().numpy()
    order = np.argsort(-all_scores, kind="stable")
    order = order[class_ids[order] >= 0]
    return ImageDetections(boxes_xyxy.float().cpu().numpy()[order], all_scores[order], class_ids[order])


def _same_sized(
    split: Split, batch_size: int, change: ImageChange | None
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Rows and images of a split in batches of one size each; threads read the next while these are worked on."""
    dataset = CocoDataset(split.index, split.files.images, None, on_bad_image="error")
    count, window = len(split.index), batch_size * _WINDOW_BATCHES
    pool = ThreadPoolExecutor(max(1, min(window, os.cpu_count() or 1, _MOST_READERS)))

    def read(row: int) -> Tensor:
        image = dataset.read_image(row)
        return image if change is None else change(image, int(split.index.image_ids[row]))

    def submit(start: int) -> list[tuple[int, Future[Tensor]]]:
        return [(row, pool.submit(read, row)) for row in range(start, min(start + window, count))]

    try:
        ahead = submit(0)
        for start in range(0, count, window):
            current, ahead = ahead, submit(start + window)
            by_size: defaultdict[SizeHW, list[tuple[int, Tensor]]] = defaultdict(list)
            for row, future in current:
                image = future.result()
                by_size[_size_hw(image)].append((row, image))
            for group in by_size.values():
                for first in range(0, len(group), batch_size):
                    rows, images = zip(*group[first : first + batch_size], strict=True)
                    yield list(rows), list(images)
    finally:  # also when the caller stops early
        pool.shutdown(cancel_futures=True)


def to_device(images: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The images there, without waiting for each copy."""
    return [image.to(device, non_blocking=True) for image in images]


def _size_hw(image: Tensor) -> SizeHW:
    return int(image.shape[-2]), int(image.shape[-1])
