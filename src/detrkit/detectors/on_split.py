"""Measuring on a split: the one way of ``eval``, ``compare`` and the studies."""

from __future__ import annotations

import copy
import functools
import logging
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from detrkit.classes import ClassMap, take_names
from detrkit.config import DataConfig
from detrkit.data.coco import CocoDataset
from detrkit.data.split import Split, read_split
from detrkit.detectors.detector import Detector
from detrkit.detectors.encode import encode_masks, has_masks
from detrkit.detectors.interop import to_supervision
from detrkit.detectors.split_evaluator import Found, ImageChange, Progress, detect_with_stages
from detrkit.detectors.stages import ModelStages, Stages
from detrkit.errors import UsageError
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.truth import CocoTruth, ground_truth_from_index
from detrkit.ops.sources import read_windows
from detrkit.types import ImageDetections
from detrkit.visual.drawing import draw

logger = logging.getLogger(__name__)


class DetectionSource(Protocol):
    """Something other than a :class:`Detector` whose detections on a split can be had, such as a file of results.

    ``name`` is what people call it; ``kind`` says what it is. ``class_map`` names the classes of its detections; a
    file of detections holds none before it is bound to a split. ``stages`` is None where nothing can be run.
    ``settings`` is all that its detections depend on besides its weights, as text; empty where nothing can be run.
    ``has_masks`` is True if its detections have masks, ``has_stuff`` if there are panoptic pictures.
    """

    name: str
    kind: str
    class_map: ClassMap
    stages: Stages | None
    max_detections: int
    settings: str
    has_masks: bool
    has_stuff: bool

    def bind(self, split: Split, /) -> DetectionSource:
        """Return the same on a split, its ``class_map`` known.

        Raises:
            DataError: It cannot be of that split.
        """

    def detect(
        self, split: Split, *, progress: Progress | None = None, change: ImageChange | None = None
    ) -> Found:
        """Give the detections of every image of a split; see :func:`detect_on_split`."""


EvalTarget = Detector | DetectionSource
"""What can be measured."""


def bind_target(target: EvalTarget, split: Split) -> EvalTarget:
    """Return what is to be measured with its classes known; a detector that guesses their names takes the data's.

    Raises:
        DataError: It is a file of detections that cannot be of that split, or the guess may be wrong.
    """
    if not isinstance(target, Detector):
        return target.bind(split)
    classes = take_names(target.class_map, split.index.class_map)
    if classes == target.class_map:
        return target
    logger.warning("%s: classes are the data set's, whose category ids are rows of the head", target.name)
    named = copy.copy(target)
    named.class_map = classes
    return named


def notes_of(target: EvalTarget) -> tuple[str, ...]:
    """Return how detections of a file were understood, or a detector detects where that is not as usual."""
    notes: tuple[str, ...] = getattr(target, "notes", ())
    return notes


def masks_left_out(target: EvalTarget, split: Split) -> tuple[str, ...]:
    """Return what to say where a target has masks, and the split, read with masks, has none."""
    if not target.has_masks or has_masks(split.index):
        return ()
    return (f"{split.files.annotations} holds no masks: of {target.name}, boxes alone are measured.",)


def detect_on_split(
    target: EvalTarget,
    split: Split,
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
    change: ImageChange | None = None,
) -> Found:
    """Detect on every image of a split, once each.

    Args:
        target: Detector, or file of detections.
        split: The images.
        batch_size: Images at once; no detection depends on it.
        progress: Called with the number of images done.
        change: Done to each image first, as for the study of corruptions.

    Raises:
        DataError: An image cannot be read.
        UsageError: ``change`` is asked of something that does not run.
    """
    if not isinstance(target, Detector):
        if change is not None and target.stages is None:
            raise UsageError(
                f"{target.name} is a file of detections, which cannot be made anew on changed images; give a model"
            )
        return target.detect(split, progress=progress, change=change)
    stages = target.stages
    if target.config is not None and isinstance(stages, ModelStages):
        return detect_with_stages(
            stages, target.config, split, batch_size=batch_size, progress=progress, change=change
        )
    return _detect_read(target, split, batch_size or target.default_batch_size, progress, change)


def _detect_read(
    detector: Detector, split: Split, batch_size: int, progress: Progress | None, change: ImageChange | None
) -> Found:
    """Detect with another toolkit's model, on images that threads read as they are."""
    pixel_range = detector.pixel_range
    dataset = CocoDataset(split.index, split.files.images, None, on_bad_image="error", pixel_range=pixel_range)

    def read(row: int) -> Tensor:
        image = dataset.read_image(row)
        return image if change is None else change(image, int(split.index.image_ids[row]))

    done = 0
    for window in read_windows(read, range(len(dataset)), detector.window(batch_size)):
        found = detector.detect_images([future.result() for _, future in window], batch_size)
        for (row, _), detections in zip(window, found, strict=True):
            yield int(split.index.image_ids[row]), detections
        done += len(window)
        if progress is not None:
            progress(done)


def collect(
    target: EvalTarget,
    split: Split,
    *,
    truth: CocoTruth | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    change: ImageChange | None = None,
) -> CocoEvaluator:
    """Collect all detections on a split in an evaluator.

    Args:
        target: Detector, or file of detections.
        split: The images and annotations.
        truth: The split's, where it was made before.
        batch_size: Images at once; no number depends on it.
        progress: Called with the number of images done.
        change: Change of each image before.

    Raises:
        DataError: No class of the target is a class of the split, or an image cannot be read.
    """
    target = bind_target(target, split)
    evaluator = CocoEvaluator(
        truth or ground_truth_from_index(split.index), target.class_map, target.max_detections
    )
    found = detect_on_split(target, split, batch_size=batch_size, progress=progress, change=change)
    if isinstance(target, Detector) and has_masks(split.index):
        found = encode_masks(found, split, target.masks, target.class_map, target.max_detections)
    for image_id, detections in found:
        evaluator.add(image_id, detections)
    return evaluator


def read_split_for(
    targets: Sequence[EvalTarget],
    split: str,
    data: str | os.PathLike[str] | None = None,
    *,
    pixels: bool | None = None,
    image_folder: str | os.PathLike[str] | None = None,
    masks: bool = False,
) -> tuple[Split, str]:
    """Read the split to measure on: of the data given, or of what the first run was trained on; with its name.

    Args:
        targets: Targets to be measured, all on the same.
        split: Name of the split.
        data: Folder of the data set in any layout, or one COCO JSON file.
        image_folder: Folder of the images of ``data``, where they lie elsewhere.
        masks: Read masks too, if any of the targets has some; of COCO panoptic the segments of stuff as well.
        pixels: True if the image files must be there; None: if any of the targets runs.

    Raises:
        UsageError: No data is given, and no target comes from a run that knows its own.
        DataError: The data cannot be read.
    """
    if pixels is None:
        pixels = any(target.stages is not None for target in targets)
    masks = masks and any(target.has_masks for target in targets)
    stuff = masks and any(target.has_stuff for target in targets)
    read = functools.partial(
        read_split, split=split, strict=True, pixels=pixels, may_lose=True, masks=masks, stuff=stuff
    )
    if data is not None:
        folder = None if image_folder is None else os.fspath(image_folder)
        return read(DataConfig(), data=os.fspath(data), image_folder=folder), os.fspath(data)
    if image_folder is not None:
        raise UsageError("an image folder is given without its annotations: name them too (--data DATA)")
    configs = [target.config for target in targets if isinstance(target, Detector)]
    own = [config.data for config in configs if config is not None]
    known = [config for config in own if config.root is not None or config.val_annotations is not None]
    if not known:
        models = "the model does not come" if len(targets) == 1 else "none of the models comes"
        raise UsageError(f"no data given (--data DATA), and {models} from a run that knows its own")
    return read(known[0]), known[0].root or known[0].val_annotations or ""


def draw_found(image: np.ndarray, found: ImageDetections, class_map: ClassMap) -> np.ndarray:
    """Draw the detections of a score of 0.5 or more on a copy of an image, uint8 ``[H, W, 3]``."""
    return draw(image, to_supervision(found, class_map, threshold=0.5))
