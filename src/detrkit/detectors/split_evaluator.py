"""Measuring one of detrkit's own models on a split: what training needs, and ``eval`` builds on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from detrkit.classes import ClassMap, match_classes
from detrkit.config import Config, Precision
from detrkit.data.coco import CocoDataset, Sample, Transform
from detrkit.data.loader import EvaluationBatchSampler, build_loader, end_workers
from detrkit.data.split import Split
from detrkit.data.transforms import eval_transform
from detrkit.detectors.encode import encode_masks, has_masks
from detrkit.detectors.stages import ModelStages, model_stages, prepare, runs_alone
from detrkit.distributed import ProcessGroup
from detrkit.evaluation.coco import BoxEvaluator, ImageResults
from detrkit.evaluation.gather import collect_together
from detrkit.evaluation.truth import ground_truth_from_index
from detrkit.families.family import BuiltModel
from detrkit.preprocess import image_size_hw
from detrkit.types import ImageDetections, Target

Progress = Callable[[int], None]
Found = Iterator[tuple[int, ImageDetections | ImageResults]]
"""Image id and detections of one image after the other."""

Draw = Callable[[np.ndarray, ImageDetections, ClassMap], np.ndarray]
"""Draws detections on a copy of an image, uint8 ``[H, W, 3]``, given the classes of the model."""

ImageChange = Callable[[Tensor, int], Tensor]
"""Gives another image of the same size from one, uint8 ``[3, H, W]`` as in its file, and its image id. Workers get
a copy of it, so it must be a function at the top of a module, or an object that can be pickled."""


def detect_with_stages(
    stages: ModelStages,
    config: Config,
    split: Split,
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
    change: ImageChange | None = None,
    processes: ProcessGroup | None = None,
) -> Found:
    """Detect on every image of a split with one of detrkit's models, in the order of the data set.

    Args:
        stages: The model.
        config: Its config.
        split: The images.
        batch_size: Images at once; no detection depends on it.
        progress: Called with the number of images done.
        change: Done to each image first.
        processes: Processes that share the work; this one does its share.

    Raises:
        DataError: An image cannot be read.
    """
    transform = eval_transform(config.transforms)
    if change is not None:
        transform = _Changed(change, transform)
    pixel_range, files = config.data.pixel_range, split.files
    dataset = CocoDataset(split.index, files.images, transform, on_bad_image="error", pixel_range=pixel_range)
    rank, world_size = (0, 1) if processes is None else (processes.rank, processes.world_size)
    sampler = EvaluationBatchSampler(len(dataset), batch_size or _batch_that_fits(config), rank, world_size)
    alone, done = config.model.masks and runs_alone(stages.device), 0
    loader = build_loader(dataset, sampler, config.data, pin=stages.device.type == "cuda")
    try:
        for batch in loader:
            if batch is None:
                continue
            for part in batch.split(1) if alone else (batch,):
                detections = stages.postprocess(stages.forward(stages.preprocess_batch(part)), part.orig_sizes_hw)
                yield from zip(part.image_ids, detections, strict=True)
            done += len(batch.image_ids)
            if progress is not None:
                progress(done)
    finally:
        end_workers(loader)


class SplitEvaluator:
    """Evaluator of a training: measures its model on one split again and again.

    With several processes, the batches are those that one alone would make, dealt out in turn, so that the
    detections are the same to the last bit.

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
        """Return the twelve numbers, on the first process; nothing on the others, which do their share too.

        Of a model with masks, on a split that was read with masks, also the twelve of its masks (``mask_AP``,
        ``mask_AP50``, ...), and on a panoptic split PQ, SQ and RQ, of things (``PQ_th``) and of stuff (``PQ_st``).
        """
        config, processes = self.built.config, self.processes
        most = config.train.max_detections
        evaluator = BoxEvaluator(self.truth, self.built.class_map, most)
        found = detect_with_stages(self._stages(model), config, self.split, processes=processes)
        if has_masks(self.split.index):
            found = encode_masks(found, self.split, config.masks, self.built.class_map, most)
        if processes is None:
            for image_id, detections in found:
                evaluator.add(image_id, detections)
            return evaluator.finish_all()
        processes.share_statistics(model)
        collect_together(processes, evaluator, found, len(self.split.index), _batch_that_fits(config))
        return evaluator.finish_all() if processes.rank == 0 else {}

    def draw_samples(self, model: nn.Module, count: int, draw: Draw) -> list[tuple[str, np.ndarray]]:
        """Draw the model's detections on the first images of the split, uint8 ``[H, W, 3]``."""
        stages, index = self._stages(model), self.split.index
        pixel_range = self.built.config.data.pixel_range
        dataset = CocoDataset(index, self.split.files.images, None, pixel_range=pixel_range)
        drawn = []
        for row in range(min(count, len(index))):
            image = dataset.read_image(row)
            [found] = stages.postprocess(stages.forward(prepare(stages, [image])), [image_size_hw(image)])
            pixels = image.permute(1, 2, 0).numpy()
            drawn.append((index.file_name(row), draw(pixels, found, self.built.class_map)))
        return drawn

    def _stages(self, model: nn.Module) -> ModelStages:
        return model_stages(dataclasses.replace(self.built, model=model), self.device, self.precision)


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
