"""Batches of a data set: which images form one, and how they are loaded, padded and packed.

Shapes: B images, H x W the greatest height and width among them, N objects of the batch,
k images of a window.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from detrkit.classes import SizeHW
from detrkit.config import DataConfig
from detrkit.data.coco import CocoDataset, Sample, SampleKey
from detrkit.data.transport import (
    SPARE_SLOTS,
    SharedBatch,
    SharedSlots,
    batch_bytes,
    mask_bits,
    shared_buffer,
    split_buffer,
)
from detrkit.errors import DataError, DetrkitError
from detrkit.machine import usable_cpus
from detrkit.masks import LazyMasks
from detrkit.ops.boxes import xyxy_to_cxcywh
from detrkit.preprocess import image_size_hw, pad_images
from detrkit.types import Batch, GroundTruth, Target

_Sizes = tuple[SizeHW, ...]

MAX_AUTO_WORKERS = 4
WINDOW = 32
"""Batches whose images are sorted by shape together: more would pad less, and mix images less."""


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Batches of keys in an order that depends on seed and epoch alone, shared out among processes.

    Every image is in exactly one batch of one process. Every process gets equally many batches; the last may be
    smaller than others by one image on some processes, or empty. The batches of all processes together are
    those of one process with ``world_size`` times the batch size. With ``drop_last``, images that do not fill a
    batch of every process are left out of the epoch.

    With ``size_of``, images of similar size form a batch, which is then padded little. The images of
    ``WINDOW`` batches, random as ever, are sorted into batches by shape, and the batches shuffled.

    Args:
        num_images: Images of the data set.
        batch_size: Images a batch and process.
        seed: Seed of the order.
        shuffle: True for an order that is not the data set's.
        rank: Number of this process.
        world_size: Number of processes.
        drop_last: Leave out what does not fill a batch, unless that would be everything.
        size_of: Size that an image will have in its batch; None for batches of images of any size.
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
        size_of: Callable[[SampleKey], SizeHW] | None = None,
    ):
        assert num_images > 0
        assert batch_size > 0
        assert 0 <= rank < world_size
        self.num_images, self.batch_size, self.seed, self.shuffle = num_images, batch_size, seed, shuffle
        self.rank, self.world_size, self.drop_last = rank, world_size, drop_last
        self.size_of = size_of
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
        """Count the batches that iteration gives now."""
        return max(0, self.num_batches - self.start_batch)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, and the batch to start at when a run is resumed in the middle of one."""
        self.epoch, self.start_batch = epoch, start_batch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, rows, size = self.epoch, self._rows(), self.batch_size
        # a resumed epoch begins in the middle of a window, which has to be sorted as a whole
        first = 0 if self.size_of is None else self.start_batch // WINDOW * WINDOW
        for begin in range(first, self.num_batches, WINDOW):
            window = rows[begin * size : (begin + WINDOW) * size]
            if self.size_of is not None and len(window):
                sizes = [self.size_of(SampleKey(epoch, row)) for row in window.tolist()]
                window = window[_bucketed(np.array(sizes), size, (self.seed, epoch, begin))]
            for batch in range(begin, min(begin + WINDOW, self.num_batches)):
                if batch >= self.start_batch:
                    start = (batch - begin) * size
                    yield [SampleKey(epoch, row) for row in window[start : start + size].tolist()]

    def _rows(self) -> np.ndarray:
        """Return the rows of this process: every ``world_size``-th of the epoch's order."""
        order = np.arange(self.num_images)
        if self.shuffle:  # by NumPy's PCG64, whose streams are the same on every machine
            order = np.random.Generator(np.random.PCG64((self.seed, self.epoch))).permutation(order)
        return order[self.rank :: self.world_size][: self.num_batches * self.batch_size]


class EvaluationBatchSampler(Sampler[list[SampleKey]]):
    """Batches in the order of the data set, dealt out among processes in turn: every image exactly once.

    The batches are those of a single process, so that none is padded differently. A process may get one batch
    less than another, or none.

    Args:
        num_images: Images of the data set.
        batch_size: Images a batch.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(self, num_images: int, batch_size: int, rank: int = 0, world_size: int = 1):
        assert batch_size > 0
        assert 0 <= rank < world_size
        self.num_images, self.batch_size, self.rank, self.world_size = num_images, batch_size, rank, world_size

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in self._starts():
            rows = range(start, min(start + self.batch_size, self.num_images))
            yield [SampleKey(0, row) for row in rows]

    def _starts(self) -> range:
        return range(self.rank * self.batch_size, self.num_images, self.world_size * self.batch_size)


def _bucketed(sizes_hw: np.ndarray, batch_size: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return an order of images, int64 ``[k]``, in which those of each batch are of similar size.

    First by aspect ratio into groups of whole batches, then by height within each. What does not fill a batch
    comes last, as without sorting.

    Args:
        sizes_hw: int64 ``[k, 2]``.
        batch_size: Images of a batch.
        seed: Seed of the order of the batches.
    """
    order = np.argsort(sizes_hw[:, 0] / sizes_hw[:, 1], kind="stable")
    batches = len(order) // batch_size
    groups = max(1, math.isqrt(batches))
    edges = np.linspace(0, batches, groups + 1).astype(np.int64) * batch_size
    edges[-1] = len(order)
    by_size = [part[np.argsort(sizes_hw[part, 0], kind="stable")] for part in np.split(order, edges[1:-1])]
    order = np.concatenate(by_size)
    whole, rest = order[: batches * batch_size].reshape(batches, batch_size), order[batches * batch_size :]
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(whole)
    return np.concatenate([shuffled.reshape(-1), rest])


@dataclasses.dataclass(frozen=True)
class LoadingFacts:
    """Facts about a loader, to be told when training waits for it.

    Args:
        workers: Loader processes of each training process.
        processes: Training processes on this machine.
        cpus: CPUs that this process may use.
        image_short: Median short side of the images as they are read, in pixels.
        needed_short: Short side that training asks for; None if unknown.
        has_cache: True if the images come from a cache.
        data: The data set, by the name to give to ``detrkit data cache``.
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
        samples: Images and targets; unreadable images (None) are left out.

    Returns:
        The batch, its images in torch's ``channels_last`` memory format; None if no image is left.
    """
    kept = [sample for sample in samples if sample is not None]
    if not kept:
        return None
    images, padding_mask = pad_images([image for image, _ in kept])
    truth, sizes_hw, image_ids, orig_sizes_hw = _pack(kept)
    masks = _masks_of(kept)
    if masks is not None:
        drawn = np.zeros((len(masks), *padding_mask.shape[1:]), dtype=bool)
        for picture, (objects, number) in zip(drawn, masks, strict=True):
            objects.draw(number, picture)
        truth = dataclasses.replace(truth, masks=torch.from_numpy(drawn))
    return Batch(images, padding_mask, truth, sizes_hw, image_ids, orig_sizes_hw)


def _pack(samples: Sequence[Sample]) -> tuple[GroundTruth, _Sizes, tuple[int, ...], _Sizes]:
    """Return what a batch has besides its pixels: objects, sizes, image ids and sizes of the files."""
    targets = [target for _, target in samples]
    return (
        pack_targets(targets),
        tuple(image_size_hw(image) for image, _ in samples),
        tuple(target["image_id"] for target in targets),
        tuple(target["orig_size_hw"] for target in targets),
    )


def pack_targets(targets: Sequence[Target]) -> GroundTruth:
    """Pack all objects but crowd regions, their boxes relative to each image without its padding; no masks."""
    labels, boxes, has_mask = [], [], list[bool]()
    for target in targets:
        single = ~target["iscrowd"]
        height, width = target["boxes"].canvas_size
        corners = target["boxes"].as_subclass(Tensor)[single]
        boxes.append(xyxy_to_cxcywh(corners) / torch.tensor([width, height, width, height]))
        labels.append(target["labels"][single])
        if "masks" in target:
            has_mask += target["masks"].is_given[single.numpy()].tolist()
    counts = tuple(len(part) for part in labels)
    return GroundTruth(torch.cat(labels), torch.cat(boxes), counts, has_mask=tuple(has_mask))


def _masks_of(samples: Sequence[Sample]) -> list[tuple[LazyMasks, int]] | None:
    """Return the masks and the number among them of each object that :func:`pack_targets` packs."""
    targets = [target for _, target in samples]
    if not all("masks" in target for target in targets):
        return None
    singles = [torch.nonzero(~target["iscrowd"]).flatten().tolist() for target in targets]
    return [(target["masks"], number) for target, own in zip(targets, singles, strict=True) for number in own]


def build_loader(
    dataset: CocoDataset,
    sampler: EpochBatchSampler | EvaluationBatchSampler,
    config: DataConfig,
    pin: bool = False,
) -> DataLoader[Batch | None]:
    """Build a loader whose batches do not depend on the number of workers.

    Workers stay alive between epochs; the epoch reaches them inside each key. Call ``sampler.set_epoch``
    before iterating. Pixels of a batch from a worker lie in memory that is used again once nothing refers to
    them, see :mod:`detrkit.data.transport`.

    Args:
        dataset: Samples by key.
        sampler: Keys of each batch.
        config: Its ``workers`` and ``prefetch`` count.
        pin: True to put batches into page-locked memory, for CUDA.
    """
    workers = auto_workers() if config.workers == "auto" else config.workers
    loader = _Loader(
        _ErrorsAsSamples(dataset),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_Collate(
            _shared_slots(workers, config.prefetch, sampler.batch_size, dataset.index.masks is not None)
        ),
        pin_memory=pin,
        worker_init_fn=_start_worker if workers else None,
        prefetch_factor=config.prefetch if workers else None,
        persistent_workers=workers > 0,
    )
    loader.facts = _facts(dataset, sampler, config, workers)
    return loader


def end_workers(loader: DataLoader[Any]) -> None:
    """End a loader's workers; Ctrl-C while torch deletes it would be a traceback, and then be lost."""
    batches: Any = getattr(loader, "_iterator", None)  # what wraps a loader has none
    if batches is not None:
        loader._iterator = None
        if loader.num_workers:
            batches._shutdown_workers()


def _facts(
    dataset: CocoDataset, sampler: EpochBatchSampler | EvaluationBatchSampler, config: DataConfig, workers: int
) -> LoadingFacts:
    short = int(np.median(dataset.index.sizes_hw.min(axis=1)))
    if dataset.cache is not None:
        short = min(short, dataset.cache.short)
    needed = dataset.decode_target
    return LoadingFacts(
        workers=workers,
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", sampler.world_size)),
        cpus=usable_cpus(),
        image_short=short,
        needed_short=max(needed.short, needed.least) if needed is not None else None,
        has_cache=dataset.cache is not None,
        data=config.root or "DATA",
    )


def _shared_slots(workers: int, prefetch: int, batch_size: int, masks: bool) -> SharedSlots | None:
    """Make slots; None where workers would not inherit them, or the system does not give so much."""
    if not workers or torch.multiprocessing.get_start_method() != "fork":
        return None
    try:
        return SharedSlots(workers, prefetch + SPARE_SLOTS, batch_size, masks)
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
    """Collation: gives a batch, or in a worker what becomes one where it arrives."""

    def __init__(self, slots: SharedSlots | None):
        self.slots = slots

    def __call__(
        self, samples: Sequence[Sample | DetrkitError | None]
    ) -> Batch | SharedBatch | DetrkitError | None:
        for sample in samples:
            if isinstance(sample, DetrkitError):
                return sample
        kept = cast("list[Sample]", [sample for sample in samples if sample is not None])
        worker = get_worker_info()
        if worker is None or not kept:
            return collate(kept)
        truth, sizes_hw, image_ids, orig_sizes_hw = _pack(kept)
        masks = _masks_of(kept)
        num_bytes = batch_bytes(sizes_hw, len(masks or ()))
        slot = self.slots.take(worker.id, num_bytes) if self.slots is not None else None
        pixels: Tensor | tuple[int, int, int]
        if self.slots is None or slot is None:
            pixels = buffer = shared_buffer(num_bytes)
        else:
            pixels = (self.slots.key, worker.id, slot)
            buffer = torch.from_numpy(self.slots.view(worker.id, slot))
        pad_images([image for image, _ in kept], split_buffer(buffer, sizes_hw))
        if masks is not None:  # one after the other: as bytes, those of a batch may take more than its pixels
            for bits, (objects, number) in zip(mask_bits(buffer, sizes_hw, len(masks)), masks, strict=True):
                (rows, columns), visible = objects.visible(number)
                start = columns.start // 8  # a byte holds eight columns
                picture = np.zeros((len(visible), columns.stop - 8 * start), dtype=bool)
                picture[:, columns.start - 8 * start :] = visible
                bits[:] = 0
                bits[rows, start : -(-columns.stop // 8)] = np.packbits(picture, axis=1)
        return SharedBatch(pixels, sizes_hw, truth, image_ids, orig_sizes_hw, masks is not None)


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


def endless_batches(loader: DataLoader[Any], sampler: EpochBatchSampler) -> Iterator[Batch | None]:
    """Yield the batches of one epoch after the other; None where no image of a batch could be read.

    Raises:
        DataError: An epoch had no readable image.
    """
    for epoch in itertools.count():
        sampler.set_epoch(epoch, 0)
        found = False
        for batch in loader:
            found |= batch is not None
            yield batch
        if not found:
            raise DataError("not one training image could be read; run: detrkit data check")


def auto_workers() -> int:
    """Return one worker for each CPU that this process may use, less one for itself; at most 4.

    A container's quota counts. Four workers give some 800 images a second by the recipe of DETR, more than one GPU
    trains on.
    """
    return max(1, min(MAX_AUTO_WORKERS, usable_cpus() - 1))


def _start_worker(worker_id: int) -> None:
    # torch's loader has set its workers to one thread already
    gc.freeze()  # else the collector would write to, and so copy, every page that holds an object of the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers itself
