"""From samples to padded batches, in an order that is a function of seed and epoch.

Shapes: B images, H x W the greatest height and width among them, N objects of the batch.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detrkit.config import DataConfig
from detrkit.data.coco import CocoDataset, Sample, SampleKey
from detrkit.errors import DetrkitError
from detrkit.ops.boxes import xyxy_to_cxcywh
from detrkit.ops.images import pad_images
from detrkit.types import Batch, GroundTruth, Target

MAX_AUTO_WORKERS = 4


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Batches of keys in an order that depends on seed and epoch alone, shared out among processes.

    Every process gets equally many batches: with ``drop_last``, images that do not fill a batch of every
    process are left out of the epoch; without, the order starts over to fill them up. A single process without
    ``drop_last`` sees every image exactly once.

    Args:
        num_images: Images of the data set.
        batch_size: Images a batch and process.
        seed: Of the order.
        shuffle: Whether the order differs from the data set's.
        rank: This process.
        world_size: Processes.
        drop_last: Leave out what does not fill a batch, unless that would be everything.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ):
        assert num_images > 0
        assert batch_size > 0
        assert 0 <= rank < world_size
        self.num_images, self.batch_size, self.seed, self.shuffle = num_images, batch_size, seed, shuffle
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.epoch = 0
        self.start_batch = 0

    @property
    def num_batches(self) -> int:
        """Batches of a whole epoch, wherever iteration starts."""
        whole = self.num_images // (self.batch_size * self.world_size)
        if self.drop_last and whole:
            return whole
        return math.ceil(math.ceil(self.num_images / self.world_size) / self.batch_size)

    def __len__(self) -> int:
        """Batches that iteration gives now."""
        return max(0, self.num_batches - self.start_batch)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, and the batch to start at when a run is resumed in the middle of one."""
        self.epoch, self.start_batch = epoch, start_batch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, rows = self.epoch, self._rows()
        for batch in range(self.start_batch, self.num_batches):
            start = batch * self.batch_size
            yield [SampleKey(epoch, row) for row in rows[start : start + self.batch_size].tolist()]

    def _rows(self) -> np.ndarray:
        """Rows of this process: every ``world_size``-th of the epoch's order."""
        order = np.arange(self.num_images)
        if self.shuffle:
            order = _shuffled(order, self.seed, self.epoch)
        share = min(self.num_batches * self.batch_size, math.ceil(self.num_images / self.world_size))
        rows: np.ndarray = np.resize(order, share * self.world_size)[self.rank :: self.world_size]
        return rows


def collate(samples: Sequence[Sample | None]) -> Batch | None:
    """Pad images at the bottom and on the right with 0, and pack their objects.

    Args:
        samples: Unreadable images (None) are left out.

    Returns:
        The batch, its images in torch's ``channels_last`` memory format; None if no image is left.
    """
    kept = [sample for sample in samples if sample is not None]
    if not kept:
        return None
    sizes_hw = tuple((image.shape[-2], image.shape[-1]) for image, _ in kept)
    images, padding_mask = pad_images([image for image, _ in kept])
    targets = tuple(target for _, target in kept)
    return Batch(images, padding_mask, pack_targets(targets), targets, sizes_hw)


def pack_targets(targets: Sequence[Target]) -> GroundTruth:
    """All objects but crowd regions, their boxes relative to each image without its padding."""
    labels, boxes = [], []
    for target in targets:
        single = ~target["iscrowd"]
        height, width = target["boxes"].canvas_size
        corners = target["boxes"].as_subclass(Tensor)[single]
        boxes.append(xyxy_to_cxcywh(corners) / torch.tensor([width, height, width, height]))
        labels.append(target["labels"][single])
    return GroundTruth(torch.cat(labels), torch.cat(boxes), tuple(len(part) for part in labels))


def build_loader(
    dataset: CocoDataset, sampler: EpochBatchSampler, config: DataConfig, pin: bool = False
) -> DataLoader[Batch | None]:
    """A loader whose batches do not depend on the number of workers.

    Workers stay alive between epochs; the epoch reaches them inside each key. Call ``sampler.set_epoch``
    before iterating.

    Args:
        dataset: What the keys are looked up in.
        sampler: What batches consist of.
        config: Its ``workers`` and ``prefetch`` count.
        pin: Whether batches are put into page-locked memory, for CUDA.
    """
    workers = auto_workers() if config.workers == "auto" else config.workers
    return _Loader(
        _ErrorsAsSamples(dataset),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_collate_or_error,
        pin_memory=pin,
        worker_init_fn=_start_worker if workers else None,
        prefetch_factor=config.prefetch if workers else None,
        persistent_workers=workers > 0,
    )


class _ErrorsAsSamples(Dataset[Any]):
    """Hands detrkit's errors on as samples: raised in a worker, torch would bury them in tracebacks."""

    def __init__(self, dataset: CocoDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> Sample | DetrkitError | None:
        try:
            return self.dataset[key]
        except DetrkitError as error:
            return error


def _collate_or_error(samples: Sequence[Sample | DetrkitError | None]) -> Batch | DetrkitError | None:
    for sample in samples:
        if isinstance(sample, DetrkitError):
            return sample
    return collate(cast("Sequence[Sample | None]", samples))


class _Loader(DataLoader[Any]):
    """Raises errors that come as batches."""

    def __iter__(self) -> Any:
        return _raising(super().__iter__())  # workers start here, not when the first batch is asked for


def _raising(batches: Iterator[Batch | DetrkitError | None]) -> Iterator[Batch | None]:
    for batch in batches:
        if isinstance(batch, DetrkitError):
            raise batch
        yield batch


def auto_workers() -> int:
    """One worker per CPU that this process may use, less one for the process itself; at most 4.

    Four give some 800 images a second by the recipe of DETR, more than one GPU trains on.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_AUTO_WORKERS, cpus - 1))


def _start_worker(worker_id: int) -> None:
    # torch's loader has set its workers to one thread already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers itself


def _shuffled(order: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A permutation by NumPy's PCG64, whose streams are the same on every machine."""
    shuffled: np.ndarray = np.random.Generator(np.random.PCG64((seed, epoch))).permutation(order)
    return shuffled
