"""Which images form a batch: a function of seed and epoch.

Shapes: B images of a batch, k images of a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from detrkit.classes import SizeHW
from detrkit.data.coco import SampleKey

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
        seed: Of the order.
        shuffle: Whether the order differs from the data set's.
        rank: This process.
        world_size: Processes.
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
        """Batches that iteration gives now."""
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
        """Rows of this process: every ``world_size``-th of the epoch's order."""
        order = np.arange(self.num_images)
        if self.shuffle:
            order = _shuffled(order, self.seed, self.epoch)
        return order[self.rank :: self.world_size][: self.num_batches * self.batch_size]


class EvaluationBatchSampler(Sampler[list[SampleKey]]):
    """Batches in the order of the data set, dealt out among processes in turn: every image exactly once.

    The batches are those of a single process, so that none is padded differently. A process may get one batch
    less than another, or none.

    Args:
        num_images: Images of the data set.
        batch_size: Images a batch.
        rank: This process.
        world_size: Processes.
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
    """An order of images, int64 ``[k]``, in which those of each batch are of similar size.

    First by aspect ratio into groups of whole batches, then by height within each. What does not fill a batch
    comes last, as without sorting.

    Args:
        sizes_hw: int64 ``[k, 2]``.
        batch_size: Images of a batch.
        seed: Of the order of the batches.
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


def _shuffled(order: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A permutation by NumPy's PCG64, whose streams are the same on every machine."""
    shuffled: np.ndarray = np.random.Generator(np.random.PCG64((seed, epoch))).permutation(order)
    return shuffled
