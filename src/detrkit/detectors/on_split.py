"""Measuring on a split: the one evaluator of training, ``eval``, ``compare`` and the studies."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from detrkit.classes import ClassMap, match_classes
from detrkit.config import Config, DataConfig, Precision
from detrkit.data.coco import CocoDataset, Sample, Transform
from detrkit.data.loader import EvaluationBatchSampler, build_loader
from detrkit.data.split import Split, read_split
from detrkit.data.transforms import eval_transform
from detrkit.detectors.detector import WINDOW_BATCHES, Detector
from detrkit.detectors.interop import to_supervision
from detrkit.detectors.load import make_detector
from detrkit.detectors.sources import read_windows
from detrkit.detectors.stages import ModelStages, Stages
from detrkit.distributed import ProcessGroup
from detrkit.errors import UsageError
from detrkit.evaluation.coco import CocoEvaluator, ImageResults
from detrkit.evaluation.gather import collect_together
from detrkit.evaluation.truth import CocoTruth, ground_truth_from_index
from detrkit.families.family import BuiltModel
from detrkit.types import ImageDetections, Target

Progress = Callable[[int], None]
Found = Iterator[tuple[int, ImageDetections | ImageResults]]
"""Image id and detections of one image after the other."""

Draw = Callable[[np.ndarray, Any], np.ndarray]
"""Draws ``supervision.Detections`` on a copy of an image, uint8 ``[H, W, 3]``."""

ImageChange = Callable[[Tensor, int], Tensor]
"""Gives another image of the same size from one, uint8 ``[3, H, W]`` as in its file, and its image id. Workers get
a copy of it, so it must be a function at the top of a module, or an object that can be pickled."""


class DetectionSource(Protocol):
    """Something other than a :class:`Detector` whose detections on a split can be had, such as a file of results.

    ``name`` is what people call it; ``kind`` says what it is. ``class_map`` names the classes of its detections; a
    file of detections holds none before it is bound to a split. ``stages`` is None where nothing can be run.
    ``settings`` is all that its detections depend on besides its weights, as text; empty where nothing can be run.
    """

    name: str
    kind: str
    class_map: ClassMap
    stages: Stages | None
    max_detections: int
    settings: str

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
    """Return what is to be measured with its classes known.

    Raises:
        DataError: It is a file of detections that cannot be of that split.
    """
    return target if isinstance(target, Detector) else target.bind(split)


def detect_on_split(
    target: EvalTarget,
    split: Split,
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
    change: ImageChange | None = None,
    processes: ProcessGroup | None = None,
) -> Found:
    """Detect on every image of a split, once each.

    Args:
        target: Detector, or file of detections.
        split: The images.
        batch_size: Images at once; no detection depends on it.
        progress: Called with the number of images done.
        change: Done to each image first, as for the study of corruptions.
        processes: Processes that share the work; this one does its share.

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
        size = batch_size or _batch_that_fits(target.config)
        return _detect_loaded(stages, target.config, split, size, progress, change, processes)
    return _detect_read(target, split, batch_size or target.default_batch_size, progress, change)


def _detect_loaded(
    stages: ModelStages,
    config: Config,
    split: Split,
    batch_size: int,
    progress: Progress | None,
    change: ImageChange | None,
    processes: ProcessGroup | None,
) -> Found:
    """Detect with one of detrkit's models, on batches of the loader in the order of the data set."""
    transform = eval_transform(config.transforms)
    if change is not None:
        transform = _Changed(change, transform)
    dataset = CocoDataset(split.index, split.files.images, transform, on_bad_image="error")
    rank, world_size = (0, 1) if processes is None else (processes.rank, processes.world_size)
    sampler = EvaluationBatchSampler(len(dataset), batch_size, rank, world_size)
    done = 0
    for batch in build_loader(dataset, sampler, config.data, pin=stages.device.type == "cuda"):
        if batch is None:
            continue
        detections = stages.postprocess(stages.forward(stages.preprocess_batch(batch)), batch.orig_sizes_hw)
        yield from zip(batch.image_ids, detections, strict=True)
        done += len(detections)
        if progress is not None:
            progress(done)


def _detect_read(
    detector: Detector, split: Split, batch_size: int, progress: Progress | None, change: ImageChange | None
) -> Found:
    """Detect with another toolkit's model, on images that threads read as they are."""
    dataset = CocoDataset(split.index, split.files.images, None, on_bad_image="error")

    def read(row: int) -> Tensor:
        image = dataset.read_image(row)
        return image if change is None else change(image, int(split.index.image_ids[row]))

    done = 0
    for window in read_windows(read, range(len(dataset)), batch_size * WINDOW_BATCHES):
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
    processes: ProcessGroup | None = None,
) -> CocoEvaluator:
    """Collect all detections on a split in an evaluator.

    With several processes, the batches are those that one alone would make, dealt out in turn, so that the
    detections are the same to the last bit. The first process's evaluator gets all, the others keep theirs.

    Args:
        target: Detector, or file of detections.
        split: The images and annotations.
        truth: The split's, where it was made before.
        batch_size: Images at once; no number depends on it.
        progress: Called with the number of images done.
        change: Change of each image before.
        processes: Processes that share the work.

    Raises:
        DataError: No class of the target is a class of the split, or an image cannot be read; raised on all
            processes.
    """
    target = bind_target(target, split)
    evaluator = CocoEvaluator(
        truth or ground_truth_from_index(split.index), target.class_map, target.max_detections
    )
    found = detect_on_split(
        target, split, batch_size=batch_size, progress=progress, change=change, processes=processes
    )
    if processes is None:
        for image_id, detections in found:
            evaluator.add(image_id, detections)
    else:
        assert isinstance(target, Detector)
        assert target.config is not None
        processes.share_statistics(target.model)
        size = batch_size or _batch_that_fits(target.config)
        collect_together(processes, evaluator, found, len(split.index), size)
    return evaluator


class SplitEvaluator:
    """Evaluator of a training: measures its model on one split again and again.

    Args:
        built: The model's family, classes and config.
        split: The images and their annotations.
        device: Device of the model.
        precision: Precision, as in :func:`detrkit.load`.
        processes: Processes that share the work; the first gets all detections.

    Raises:
        DataError: No class of the model is a class of the split.
    """

    def __init__(
        self,
        built: BuiltModel,
        split: Split,
        device: torch.device,
        *,
        precision: Precision = "32",
        processes: ProcessGroup | None = None,
    ):
        self.built, self.split = built, split
        self.device, self.precision, self.processes = device, precision, processes
        self.truth = ground_truth_from_index(split.index)
        match_classes(built.class_map, self.truth.class_map)  # better now than after an epoch

    def measure(self, model: nn.Module) -> Mapping[str, float]:
        """Return the twelve numbers, on the first process; nothing on the others, which do their share too."""
        evaluator = collect(self._detector(model), self.split, truth=self.truth, processes=self.processes)
        return evaluator.finish().values if self.processes is None or self.processes.rank == 0 else {}

    def draw_samples(self, model: nn.Module, count: int, draw: Draw) -> list[tuple[str, np.ndarray]]:
        """Draw the model's detections on the first images of the split, uint8 ``[H, W, 3]``."""
        detector, index = self._detector(model), self.split.index
        dataset = CocoDataset(index, self.split.files.images, None)
        drawn = []
        for row in range(min(count, len(index))):
            image = dataset.read_image(row)
            detections = to_supervision(detector.predict_batch([image])[0], detector.class_map, threshold=0.5)
            drawn.append((index.file_name(row), draw(image.permute(1, 2, 0).numpy(), detections)))
        return drawn

    def _detector(self, model: nn.Module) -> Detector:
        built = dataclasses.replace(self.built, model=model)
        return make_detector(built, device=self.device, precision=self.precision)


def read_split_for(
    targets: Sequence[EvalTarget],
    split: str,
    data: str | os.PathLike[str] | None = None,
    *,
    pixels: bool | None = None,
) -> tuple[Split, str]:
    """Read the split to measure on: of the data given, or of what the first run was trained on; with its name.

    Args:
        targets: Targets to be measured, all on the same.
        split: Name of the split.
        data: Folder of the data set in any layout, or one COCO JSON file.
        pixels: True if the image files must be there; None: if any of the targets runs.

    Raises:
        UsageError: No data is given, and no target comes from a run that knows its own.
        DataError: The data cannot be read.
    """
    if pixels is None:
        pixels = any(target.stages is not None for target in targets)
    if data is not None:
        where = os.fspath(data)
        return read_split(DataConfig(), split, where, strict=True, pixels=pixels), where
    configs = [target.config for target in targets if isinstance(target, Detector)]
    own = [config.data for config in configs if config is not None]
    known = [config for config in own if config.root is not None or config.val_annotations is not None]
    if not known:
        models = "the model does not come" if len(targets) == 1 else "none of the models comes"
        raise UsageError(f"no data given (--data DATA), and {models} from a run that knows its own")
    part = read_split(known[0], split, strict=True, pixels=pixels)
    return part, known[0].root or known[0].val_annotations or ""


@dataclasses.dataclass(frozen=True)
class _Changed:
    """A transform with a change of the image before it."""

    change: ImageChange
    transform: Transform

    def __call__(self, image: tv_tensors.Image, target: Target) -> Sample:
        changed = self.change(image.as_subclass(Tensor), target["image_id"])
        return self.transform(tv_tensors.Image(changed), target)


def _batch_that_fits(config: Config) -> int:
    """Return the images that the device is known to hold at once, of those that a batch of training has."""
    train = config.train
    return min(train.batch_size, train.micro_batch) if isinstance(train.micro_batch, int) else train.batch_size
