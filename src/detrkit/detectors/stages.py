"""The one interface of everything that can be evaluated, and detrkit's own models behind it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from detrkit.classes import ClassMap, SizeHW
from detrkit.config import DataConfig
from detrkit.data.split import Split, read_split
from detrkit.detectors.batches import evaluation_mode, run_model
from detrkit.detectors.detector import Detector
from detrkit.detectors.on_split import ImageChange, SplitEvaluator
from detrkit.errors import UsageError
from detrkit.evaluation.coco import CocoEvaluator, ImageResults
from detrkit.evaluation.truth import CocoTruth, ground_truth_from_index
from detrkit.preprocess import pad_images, resize_image, resized_size_hw
from detrkit.types import ImageDetections

Progress = Callable[[int], None]


class Stages(Protocol):
    """A detector in its three stages, so that each can be timed, on any images.

    ``network`` is the module that ``forward`` runs, for its parameters and its arithmetic.
    """

    @property
    def network(self) -> nn.Module:
        """The module that ``forward`` runs."""

    @property
    def device(self) -> torch.device:
        """Where it is."""

    def preprocess(self, images: Sequence[Tensor]) -> Any:
        """What ``forward`` takes, on the device, from uint8 images ``[3, H, W]`` RGB of any sizes."""

    def forward(self, inputs: Any) -> Any:
        """The network's outputs, without gradients."""

    def postprocess(self, outputs: Any, orig_sizes_hw: Sequence[SizeHW]) -> list[ImageDetections]:
        """Detections of each image in its own pixels, best first, without a score threshold of ours."""


class Subject(Protocol):
    """Something whose detections on a split can be had.

    ``name`` is what people call it; ``kind`` says what it is, such as detrkit, torchvision or results.
    ``class_map`` names the classes of its detections; a file of detections holds none before it is bound to a
    split. ``stages`` is None where nothing can be run. ``settings`` is all that its detections depend on besides
    its weights, as text; empty where nothing can be run.
    """

    name: str
    kind: str
    class_map: ClassMap
    stages: Stages | None
    max_detections: int
    settings: str

    def bind(self, split: Split, /) -> Subject:
        """The same on a split, its ``class_map`` known.

        Raises:
            DataError: It cannot be of that split.
        """

    def detect(
        self,
        split: Split,
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
        change: ImageChange | None = None,
    ) -> Iterator[tuple[int, ImageDetections | ImageResults]]:
        """Image id and detections of every image of a split, once each.

        Args:
            split: The images.
            batch_size: Images at once.
            progress: Called with the number of images done.
            change: Done to each image first.

        Raises:
            DataError: An image cannot be read.
            UsageError: ``change`` is asked of something that does not run.
        """


@dataclasses.dataclass(frozen=True)
class DetectorStages:
    """The stages of detrkit's own models, as :class:`Detector` runs them."""

    detector: Detector

    @property
    def network(self) -> nn.Module:
        """The model."""
        return self.detector.model

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.detector.device

    def preprocess(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Images resized and padded, and the padding mask if any is padded."""
        transforms = self.detector.config.transforms
        resized = []
        for image in images:
            size_hw = (int(image.shape[-2]), int(image.shape[-1]))
            wanted = resized_size_hw(size_hw, transforms.eval_size, transforms.max_size)
            resized.append(image if wanted == size_hw else resize_image(image, wanted))
        stacked, mask = pad_images(resized)
        padded = len({tuple(image.shape) for image in resized}) > 1
        return stacked.to(self.device), mask.to(self.device) if padded else None

    def forward(self, inputs: tuple[Tensor, Tensor | None]) -> Any:
        """The model's outputs."""
        images, mask = inputs
        detector = self.detector
        with evaluation_mode(detector.model):
            return run_model(
                detector.model,
                images,
                mask,
                detector.config,
                detector.device,
                detector.precision,
                detector.channels_last,
            )

    def postprocess(self, outputs: Any, orig_sizes_hw: Sequence[SizeHW]) -> list[ImageDetections]:
        """The family's."""
        return self.detector.postprocess(outputs, orig_sizes_hw, self.detector.class_map)


class DetectorSubject:
    """One of detrkit's own models.

    Args:
        name: What people call it.
        detector: The model.
    """

    kind = "detrkit"

    def __init__(self, name: str, detector: Detector):
        self.name = name
        self.detector = detector
        self.class_map = detector.class_map
        self.stages: Stages | None = DetectorStages(detector)
        self.max_detections = detector.config.train.max_detections
        self.settings = f"{detector.config.model_dump_json()} {detector.precision}"

    def bind(self, _split: Split, /) -> DetectorSubject:
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
        """As training and ``eval`` do it; see :class:`Subject`."""
        evaluator = SplitEvaluator(
            self.detector.config,
            self.class_map,
            split,
            self.detector.device,
            batch_size=batch_size,
            precision=self.detector.precision,
            progress=progress,
            change=change,
        )
        return evaluator.detections(self.detector.model)


def collect(
    subject: Subject,
    split: Split,
    *,
    truth: CocoTruth | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    change: ImageChange | None = None,
) -> CocoEvaluator:
    """The evaluator with all detections of a subject on a split.

    Args:
        subject: What detects.
        split: The images and annotations.
        truth: The split's, where it was made before.
        batch_size: As for :meth:`Subject.detect`.
        progress: As for :meth:`Subject.detect`.
        change: As for :meth:`Subject.detect`.

    Raises:
        DataError: No class of the subject is a class of the split, or an image cannot be read.
    """
    subject = subject.bind(split)
    evaluator = CocoEvaluator(
        truth or ground_truth_from_index(split.index), subject.class_map, subject.max_detections
    )
    for image_id, detections in subject.detect(split, batch_size=batch_size, progress=progress, change=change):
        evaluator.add(image_id, detections)
    return evaluator


def read_split_for(
    subjects: Sequence[Subject],
    split: str,
    data: str | os.PathLike[str] | None = None,
    *,
    pixels: bool | None = None,
) -> tuple[Split, str]:
    """The split to measure on, and what its data set is called: that given, or what the first run was trained on.

    Args:
        subjects: What shall be measured, all on the same.
        split: Name of the split.
        data: Folder of the data set in any layout, or one COCO JSON file.
        pixels: Whether the image files must be there; None: if any of the subjects runs.

    Raises:
        UsageError: No data is given, and no subject comes from a run that knows its own.
        DataError: The data cannot be read.
    """
    if pixels is None:
        pixels = any(subject.stages is not None for subject in subjects)
    if data is not None:
        where = os.fspath(data)
        return read_split(DataConfig(), split, where, strict=True, pixels=pixels), where
    own = [subject.detector.config.data for subject in subjects if isinstance(subject, DetectorSubject)]
    config = next(
        (config for config in own if config.root is not None or config.val_annotations is not None), None
    )
    if config is None:
        models = "the model does not come" if len(subjects) == 1 else "none of the models comes"
        raise UsageError(f"no data given (--data DATA), and {models} from a run that knows its own")
    part = read_split(config, split, strict=True, pixels=pixels)
    return part, config.root or config.val_annotations or ""
