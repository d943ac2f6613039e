"""The one evaluator of training, ``eval`` and ``compare``: a model, a split, its detections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from detrkit.classes import ClassMap, match_classes
from detrkit.config import Config
from detrkit.data.coco import CocoDataset, Sample, Transform
from detrkit.data.loader import EpochBatchSampler, EvaluationBatchSampler, build_loader
from detrkit.data.split import Split
from detrkit.data.transforms import eval_transform
from detrkit.detectors.batches import detect_batches
from detrkit.detectors.interop import to_supervision
from detrkit.distributed import Peers
from detrkit.evaluation.coco import CocoEvaluator, CocoMetrics
from detrkit.evaluation.gather import collect_together
from detrkit.evaluation.truth import CocoTruth, ground_truth_from_index
from detrkit.families.registry import get_family
from detrkit.types import ImageDetections, Target
from detrkit.visual.drawing import draw

ImageChange = Callable[[Tensor, int], Tensor]
"""Gives another image of the same size from one, uint8 ``[3, H, W]`` as in its file, and its image id. Workers get
a copy of it, so it must be a function at the top of a module, or an object that can be pickled."""


@dataclasses.dataclass(frozen=True)
class _Changed:
    """A transform with a change of the image before it."""

    change: ImageChange
    transform: Transform

    def __call__(self, image: tv_tensors.Image, target: Target) -> Sample:
        changed = self.change(image.as_subclass(Tensor), target["image_id"])
        return self.transform(tv_tensors.Image(changed), target)


class SplitEvaluator:
    """Evaluates models on one split, always in the same way; the one evaluator of training and ``eval``.

    Args:
        config: Preprocessing, loading and the number of detections.
        class_map: The model's classes.
        split: The images and their annotations.
        device: Where the model is.
        precision: As in :class:`detrkit.detectors.detector.Detector`.
        batch_size: Images at once; the numbers do not depend on it.
        progress: Called with the number of images done after each batch.
        peers: The processes that share the work; the first gets all detections.
        change: Done to each image first, as for the study of corruptions.

    Raises:
        DataError: No class of the model is a class of the split.
    """

    def __init__(
        self,
        config: Config,
        class_map: ClassMap,
        split: Split,
        device: torch.device,
        *,
        batch_size: int | None = None,
        precision: Any = "32",
        progress: Callable[[int], None] | None = None,
        peers: Peers | None = None,
        change: ImageChange | None = None,
    ):
        self.config = config
        self.class_map = class_map
        self.split = split
        self.device = device
        self.precision = precision
        self.batch_size = batch_size or _batch_that_fits(config)
        self.progress = progress
        self.peers = peers
        self.change = change
        self.truth: CocoTruth = ground_truth_from_index(split.index)
        match_classes(class_map, self.truth.class_map)  # better now than after an epoch

    def __call__(self, model: nn.Module) -> CocoMetrics:
        """The metrics of a model; see :meth:`collect`."""
        return self.collect(model).finish()

    def measure(self, model: nn.Module) -> Mapping[str, float]:
        """The twelve numbers, on the first process; nothing on the others, which do their share all the same."""
        evaluator = self.collect(model)
        return evaluator.finish().values if self.peers is None or self.peers.rank == 0 else {}

    def collect(self, model: nn.Module) -> CocoEvaluator:
        """Run a model over the split; the evaluator then holds all its detections, once each.

        With several processes, the batches are those that one alone would make, dealt out in turn, so that the
        detections are the same to the last bit. The first process's evaluator gets all, the others keep theirs.

        Raises:
            DataError: An image cannot be read; raised on all processes.
        """
        evaluator = CocoEvaluator(self.truth, self.class_map, self.config.train.max_detections)
        share = self.detections(model)
        if self.peers is None:
            for image_id, detections in share:
                evaluator.add(image_id, detections)
        else:
            self.peers.share_statistics(model)
            collect_together(self.peers, evaluator, share, len(self.split.index), self.batch_size)
        return evaluator

    def _tell(self, done: int) -> None:
        if self.progress is not None and (done % self.batch_size == 0 or done == len(self.split.index)):
            self.progress(done)

    def detections(self, model: nn.Module) -> Iterator[tuple[int, ImageDetections]]:
        """Image id and detections of this process's images.

        Raises:
            DataError: An image cannot be read.
        """
        for done, found in enumerate(self._detect(model), start=1):
            yield found
            if self.peers is None:
                self._tell(done)

    def _detect(self, model: nn.Module) -> Iterator[tuple[int, ImageDetections]]:
        transform = eval_transform(self.config.transforms)
        if self.change is not None:
            transform = _Changed(self.change, transform)
        dataset = CocoDataset(self.split.index, self.split.files.images, transform, on_bad_image="error")
        rank, world_size = (0, 1) if self.peers is None else (self.peers.rank, self.peers.world_size)
        sampler = EvaluationBatchSampler(len(dataset), self.batch_size, rank, world_size)
        loader = build_loader(dataset, sampler, self.config.data, pin=self.device.type == "cuda")
        batches = (batch for batch in loader if batch is not None)
        postprocess = get_family(self.config.model.family).postprocess
        return detect_batches(
            model,
            postprocess,
            batches,
            self.class_map,
            self.config,
            self.device,
            self.precision,
            channels_last=True,
        )

    def draw_samples(self, model: nn.Module, count: int) -> list[tuple[str, np.ndarray]]:
        """The first images of the split with what the model sees on them, uint8 ``[H, W, 3]``."""
        index = self.split.index
        dataset = CocoDataset(index, self.split.files.images, eval_transform(self.config.transforms))
        sampler = EpochBatchSampler(min(count, len(index)), 1, seed=0, shuffle=False)
        loader = build_loader(dataset, sampler, self.config.data.model_copy(update={"workers": 0}), pin=False)
        postprocess = get_family(self.config.model.family).postprocess
        batches = (batch for batch in loader if batch is not None)
        rows = {int(image_id): row for row, image_id in enumerate(index.image_ids[: len(sampler)])}
        drawn = []
        for image_id, found in detect_batches(
            model, postprocess, batches, self.class_map, self.config, self.device, self.precision
        ):
            image = dataset.read_image(rows[image_id]).permute(1, 2, 0).numpy()
            detections = to_supervision(found, self.class_map, threshold=0.5)
            drawn.append((index.file_name(rows[image_id]), draw(image, detections)))
        return drawn


def _batch_that_fits(config: Config) -> int:
    """Images that the device is known to hold at once, of those that a batch of training has."""
    train = config.train
    return min(train.batch_size, train.micro_batch) if isinstance(train.micro_batch, int) else train.batch_size
