"""From samples to padded batches.

Shapes: B images, H x W the greatest height and width among them, N objects of the batch.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from detrkit.classes import SizeHW
from detrkit.config import DataConfig
from detrkit.data.coco import CocoDataset, Sample, SampleKey
from detrkit.data.sampler import EpochBatchSampler, EvaluationBatchSampler
from detrkit.data.transport import SPARE_SLOTS, Parcel, SharedSlots, batch_bytes, shared_buffer, split_buffer
from detrkit.errors import DetrkitError
from detrkit.ops.boxes import xyxy_to_cxcywh
from detrkit.ops.images import pad_images
from detrkit.types import Batch, GroundTruth, Target

__all__ = [
    "EpochBatchSampler",
    "LoadingFacts",
    "auto_workers",
    "available_cpus",
    "build_loader",
    "collate",
    "pack_targets",
]

MAX_AUTO_WORKERS = 4


@dataclasses.dataclass(frozen=True)
class LoadingFacts:
    """What can be said of a loader when training waits for it.

    Args:
        workers: Loader processes of each training process.
        processes: Training processes on this machine.
        cpus: That this process may use.
        image_short: Median short side of the images as they are read, in pixels.
        needed_short: Short side that training asks for; None if unknown.
        has_cache: Whether the images come from a cache.
        data: The data set, as a person would name it to ``detrkit data cache``.
    """

    workers: int
    processes: int
    cpus: int
    image_short: int
    needed_short: int | None
    has_cache: bool
    data: str


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
    images, padding_mask = pad_images([image for image, _ in kept])
    targets = tuple(target for _, target in kept)
    return Batch(images, padding_mask, pack_targets(targets), targets, _sizes_hw(kept))


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
    dataset: CocoDataset,
    sampler: EpochBatchSampler | EvaluationBatchSampler,
    config: DataConfig,
    pin: bool = False,
) -> DataLoader[Batch | None]:
    """A loader whose batches do not depend on the number of workers.

    Workers stay alive between epochs; the epoch reaches them inside each key. Call ``sampler.set_epoch``
    before iterating. Pixels of a batch from a worker lie in memory that is used again once nothing refers to
    them, see :mod:`detrkit.data.transport`.

    Args:
        dataset: What the keys are looked up in.
        sampler: What batches consist of.
        config: Its ``workers`` and ``prefetch`` count.
        pin: Whether batches are put into page-locked memory, for CUDA.
    """
    workers = auto_workers() if config.workers == "auto" else config.workers
    loader = _Loader(
        _ErrorsAsSamples(dataset),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_Collate(_shared_slots(workers, config.prefetch, sampler.batch_size)),
        pin_memory=pin,
        worker_init_fn=_start_worker if workers else None,
        prefetch_factor=config.prefetch if workers else None,
        persistent_workers=workers > 0,
    )
    loader.facts = _facts(dataset, sampler, config, workers)
    return loader


def _facts(
    dataset: CocoDataset, sampler: EpochBatchSampler | EvaluationBatchSampler, config: DataConfig, workers: int
) -> LoadingFacts:
    short = int(np.median(dataset.index.sizes_hw.min(axis=1)))
    if dataset.cache is not None:
        short = min(short, dataset.cache.short)
    needed = dataset.enough
    return LoadingFacts(
        workers=workers,
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", sampler.world_size)),
        cpus=available_cpus(),
        image_short=short,
        needed_short=max(needed.short, needed.least) if needed is not None else None,
        has_cache=dataset.cache is not None,
        data=config.root or "DATA",
    )


def _shared_slots(workers: int, prefetch: int, batch_size: int) -> SharedSlots | None:
    """None where workers would not inherit them, or the system does not give so much."""
    if not workers or torch.multiprocessing.get_start_method() != "fork":
        return None
    try:
        return SharedSlots(workers, prefetch + SPARE_SLOTS, batch_size)
    except OSError:
        return None


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


class _Collate:
    """Gives a batch, or in a worker the parcel that becomes one."""

    def __init__(self, slots: SharedSlots | None):
        self.slots = slots

    def __call__(self, samples: Sequence[Sample | DetrkitError | None]) -> Batch | Parcel | DetrkitError | None:
        for sample in samples:
            if isinstance(sample, DetrkitError):
                return sample
        kept = cast("list[Sample]", [sample for sample in samples if sample is not None])
        worker = get_worker_info()
        if worker is None or not kept:
            return collate(kept)
        sizes_hw = _sizes_hw(kept)
        num_bytes = batch_bytes(sizes_hw)
        slot = self.slots.take(worker.id, num_bytes) if self.slots is not None else None
        pixels: Tensor | tuple[int, int, int]
        if self.slots is None or slot is None:
            pixels = buffer = shared_buffer(num_bytes)
        else:
            pixels = (self.slots.key, worker.id, slot)
            buffer = torch.from_numpy(self.slots.view(worker.id, slot))
        pad_images([image for image, _ in kept], split_buffer(buffer, sizes_hw))
        targets = [target for _, target in kept]
        return Parcel(pixels, sizes_hw, pack_targets(targets), targets)


class _Loader(DataLoader[Any]):
    """Raises errors that come as batches."""

    facts: LoadingFacts

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
    return max(1, min(MAX_AUTO_WORKERS, available_cpus() - 1))


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sizes_hw(samples: Sequence[Sample]) -> tuple[SizeHW, ...]:
    return tuple((image.shape[-2], image.shape[-1]) for image, _ in samples)


def _start_worker(worker_id: int) -> None:
    # torch's loader has set its workers to one thread already
    gc.freeze()  # else the collector would write to, and so copy, every page that holds an object of the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers itself
