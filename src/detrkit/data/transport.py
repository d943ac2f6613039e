"""Transport of batches from a worker to the training process without copying pixels or opening files.

torch's loader moves every tensor of a batch through a file in ``/dev/shm`` of its own: two dozen files for a
batch of four images, each to be made, zeroed by the kernel page by page, sent and mapped. That took as long as
all else that is done to an image, and fails where ``/dev/shm`` is small, as in a container. Here every worker
writes pixels into a few slots of memory that both processes have mapped from the beginning, and masks, where there
are any, as one bit a pixel; the rest is small and goes by value.

Shapes: B images, H x W the greatest height and width among them, N objects.
"""

from __future__ import annotations

import itertools
import mmap
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detrkit.classes import SizeHW
from detrkit.types import Batch, GroundTruth

SPARE_SLOTS = 3
"""Beyond the batches that wait to be asked for: the one in use, the one before it (kept until its step is known to
be sound), and the one being written."""

# The largest image of the DETR recipe has 1333 x 1333 pixels, of three colours and one byte of padding mask; masks
# of 32 objects take as much again. Only memory that was written counts: a slot grows to its largest batch.
_BYTES_AN_IMAGE = 4 * 1344 * 1344

_keys = itertools.count()
# Where a batch that arrives finds the memory that it lies in.
_mapped: weakref.WeakValueDictionary[int, SharedSlots] = weakref.WeakValueDictionary()


class SharedSlots:
    """Memory that the process and its forked workers share, for a few batches of each worker.

    A slot is taken by its worker, and given back when the last tensor that lies in it is gone.

    Args:
        workers: Worker processes, which are forked after this.
        slots: Batches of each that may be on their way or in use.
        images: Images of a batch.
        masks: Whether they come with masks.

    Raises:
        OSError: The system does not give so much address space.
    """

    def __init__(self, workers: int, slots: int, images: int, masks: bool = False):
        self.slots = slots
        self.capacity = -(-images * (2 if masks else 1) * _BYTES_AN_IMAGE // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = [mmap.mmap(-1, slots * self.capacity) for _ in range(workers)]
        self._taken = mmap.mmap(-1, workers * slots)
        self._met = np.zeros((workers, slots), dtype=np.int64)
        self.key = next(_keys)
        _mapped[self.key] = self

    def take(self, worker: int, num_bytes: int) -> int | None:
        """Return a free slot of a worker; None if none is free, or the batch is too large for one."""
        if num_bytes > self.capacity:
            return None
        for slot in range(self.slots):
            if not self._taken[worker * self.slots + slot]:
                self._taken[worker * self.slots + slot] = 1
                return slot
        return None

    def give_back(self, worker: int, slot: int) -> None:
        """Let the worker write there again."""
        self._taken[worker * self.slots + slot] = 0

    def view(self, worker: int, slot: int) -> np.ndarray:
        """Return the memory of a slot, uint8 ``[capacity]``."""
        return np.frombuffer(self._memory[worker], np.uint8, self.capacity, slot * self.capacity)

    def received(self, worker: int, slot: int, num_bytes: int) -> Tensor:
        """Return the memory of a slot, given back when neither this tensor nor a view of it is left.

        Pages that are new here are met at once: until then they would be the worker's alone, and its memory would
        look twice as large as it is.
        """
        memory = self.view(worker, slot)
        met = int(self._met[worker, slot])
        if num_bytes > met:
            memory[met : num_bytes : mmap.PAGESIZE].max()
            self._met[worker, slot] = num_bytes
        weakref.finalize(memory, self.give_back, worker, slot).atexit = False
        return torch.from_numpy(memory)


class SharedBatch:
    """A batch on its way: pickled in a worker, it is a :class:`detrkit.types.Batch` again where it arrives.

    Args:
        pixels: Memory of pixels, padding mask and masks: a buffer, or the key, worker and number of a slot.
        sizes_hw: Size of each image.
        truth: Its objects, without masks, which go as arrays: as tensors, each would travel in a file of its own.
        image_ids: The data set's id of each image.
        orig_sizes_hw: Size of each image file.
        masks: Whether there are masks.
    """

    def __init__(
        self,
        pixels: Tensor | tuple[int, int, int],
        sizes_hw: tuple[SizeHW, ...],
        truth: GroundTruth,
        image_ids: tuple[int, ...],
        orig_sizes_hw: tuple[SizeHW, ...],
        masks: bool = False,
    ):
        arrays = (truth.labels.numpy(), truth.boxes_cxcywh.numpy(), truth.counts, truth.has_mask)
        self.contents = (pixels, sizes_hw, arrays, image_ids, orig_sizes_hw, masks)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, self.contents


def shared_buffer(num_bytes: int) -> Tensor:
    """Return memory that torch moves between processes in its own way: where there is no slot."""
    storage: Any = torch.UntypedStorage
    buffer = torch.empty(0, dtype=torch.uint8)
    return buffer.set_(storage._new_shared(num_bytes), 0, (num_bytes,), (1,))


def batch_bytes(sizes_hw: Sequence[SizeHW], masks: int = 0) -> int:
    """Return the bytes of pixels and padding mask of images of these sizes, and of a number of masks."""
    height, width = _padded_hw(sizes_hw)
    return 4 * len(sizes_hw) * height * width + masks * height * -(-width // 8)


def split_buffer(buffer: Tensor, sizes_hw: Sequence[SizeHW]) -> tuple[Tensor, Tensor]:
    """Return pixels ``[B, 3, H, W]``, channels last, and mask ``[B, H, W]`` that lie in a buffer of uint8."""
    height, width = _padded_hw(sizes_hw)
    area = len(sizes_hw) * height * width
    pixels = buffer[: 3 * area].view(len(sizes_hw), height, width, 3).permute(0, 3, 1, 2)
    return pixels, buffer[3 * area : 4 * area].view(torch.bool).view(len(sizes_hw), height, width)


def mask_bits(buffer: Tensor, sizes_hw: Sequence[SizeHW], masks: int) -> np.ndarray:
    """Return the masks that lie in a buffer behind pixels and padding mask, uint8 ``[N, H, W / 8]``."""
    (height, width), start = _padded_hw(sizes_hw), batch_bytes(sizes_hw)
    bits: np.ndarray = buffer[start : batch_bytes(sizes_hw, masks)].numpy().reshape(masks, height, -(-width // 8))
    return bits


def _padded_hw(sizes_hw: Sequence[SizeHW]) -> SizeHW:
    return max(height for height, _ in sizes_hw), max(width for _, width in sizes_hw)


def _unpacked(
    pixels: Tensor | tuple[int, int, int],
    sizes_hw: tuple[SizeHW, ...],
    truth: tuple[np.ndarray, np.ndarray, tuple[int, ...], tuple[bool, ...]],
    image_ids: tuple[int, ...],
    orig_sizes_hw: tuple[SizeHW, ...],
    masks: bool,
) -> Batch:
    """Make the batch; called by pickle in the process that it was sent to."""
    labels, boxes_cxcywh, counts, has_mask = truth
    if isinstance(pixels, tuple):
        key, worker, slot = pixels
        num_bytes = batch_bytes(sizes_hw, len(labels) if masks else 0)
        pixels = _mapped[key].received(worker, slot, num_bytes)
    images, padding_mask = split_buffer(pixels, sizes_hw)
    drawn = None
    if masks:
        bits = mask_bits(pixels, sizes_hw, len(labels))
        drawn = torch.from_numpy(np.unpackbits(bits, axis=2, count=images.shape[3])).view(torch.bool)
    objects = GroundTruth(torch.from_numpy(labels), torch.from_numpy(boxes_cxcywh), counts, drawn, has_mask)
    return Batch(images, padding_mask, objects, sizes_hw, image_ids, orig_sizes_hw)
