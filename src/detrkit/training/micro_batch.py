"""Search for how many images fit into memory at once, by training steps on the worst batch of the data."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import SingleDeviceStrategy

from detrkit.classes import SizeHW
from detrkit.config import TransformConfig
from detrkit.data.index import CocoIndex
from detrkit.data.transforms import largest_outputs
from detrkit.hardware import PeakMemory
from detrkit.training.forward_backward import Passes, single_step
from detrkit.training.loop import build_state
from detrkit.training.memory import available_bytes, free_memory, halved, is_out_of_memory
from detrkit.training.session import TrainingSetup
from detrkit.types import Batch, GroundTruth

# Shares of the free memory that are used. The host's is shared with the loader's workers and other programs, and
# does not refuse politely; a GPU's needs some room for pieces too small to be used.
_SHARE = {"cpu": 0.8, "cuda": 0.9}
_SMALL_SIDE = 64


@dataclasses.dataclass(frozen=True)
class WorstCase:
    """Greatest demand of a training.

    Args:
        single_hw: The image with the most pixels, as the network sees it.
        tallest_hw: The highest image.
        widest_hw: The widest image.
        objects: The most objects an image can have.
    """

    single_hw: SizeHW
    tallest_hw: SizeHW
    widest_hw: SizeHW
    objects: int

    def sizes(self, count: int) -> list[SizeHW]:
        """Return the sizes of the images of the worst batch: upright and lying ones, which pad each other."""
        if count == 1:
            return [self.single_hw]
        return [(self.tallest_hw, self.widest_hw)[number % 2] for number in range(count)]

    def padded_hw(self, count: int) -> SizeHW:
        """Return the size of that batch."""
        height, width = (max(side) for side in zip(*self.sizes(count), strict=True))
        return height, width

    def __str__(self) -> str:
        height, width = self.padded_hw(2)
        return f"{height} x {width} pixels with {self.objects} objects an image"


@dataclasses.dataclass(frozen=True)
class FoundMicroBatch:
    """Images that fit into memory at once.

    Args:
        images: Images at once, at most ``batch_size``.
        batch_size: Images a batch and process.
        worst: Batch that was tried.
        reason: Reason why not more; empty if the whole batch fits.
    """

    images: int
    batch_size: int
    worst: WorstCase
    reason: str

    def __str__(self) -> str:
        """Tell people what fits."""
        worst = f"worst case: {self.worst}"
        if self.images < self.batch_size:
            return (
                f"{self.images} images fit at once ({worst}); a batch of {self.batch_size} goes in pieces of "
                f"{self.images}, with the same gradient; more do not: {self.reason}"
            )
        return f"a batch of {self.batch_size} fits at once ({worst})"


def worst_case(config: TransformConfig, index: CocoIndex) -> WorstCase:
    """Find the largest image, the largest padded batch and the most objects that training can come to see."""
    shapes = {(int(height), int(width)) for height, width in np.unique(index.sizes_hw, axis=0)}
    sizes = largest_outputs(config, shapes)
    counts = index.object_counts()
    composed = (4 if config.mosaic else 1) * (2 if config.mixup else 1)
    return WorstCase(
        single_hw=max(sizes, key=lambda size: (size[0] * size[1], size)),
        tallest_hw=max(sizes),
        widest_hw=max(sizes, key=lambda size: (size[1], size[0])),
        objects=int(counts.max(initial=0)) * composed,
    )


def find_micro_batch(
    setup: TrainingSetup, index: CocoIndex, fabric: Fabric, say: Callable[[str], None]
) -> FoundMicroBatch:
    """Find the largest power of two of images, up to the batch size, that a step holds in the worst case.

    Whole steps are made, with gradients, optimiser state and averaged weights, on a copy of the model: the model
    and all random numbers are afterwards what they were before. Of several processes the least counts.

    Args:
        setup: Training to come; its model is not changed, wherever it is.
        index: Training images.
        fabric: Device and precision.
        say: Receives messages for people.

    Raises:
        MemoryExhaustedError: Not even one image fits.
    """
    worst = worst_case(setup.config.transforms, index)
    say(f"trying how many images fit into memory at once; worst case: {worst}")
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    limit = _limit(fabric)
    with torch.random.fork_rng(devices):
        fits, reason = _try_sizes(setup, worst, fabric, limit)
    free_memory()
    if fabric.world_size > 1:
        least = torch.tensor(fits, device=fabric.device)
        torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
        reason = reason or "another process has less memory"
        fits = int(least)
    if fits == 0:
        halved(1, reason)
    batch_size = setup.config.train.batch_size
    return FoundMicroBatch(fits, batch_size, worst, reason if fits < batch_size else "")


def _try_sizes(setup: TrainingSetup, worst: WorstCase, fabric: Fabric, limit: float) -> tuple[int, str]:
    """Return the images that fit, and why not more."""
    train = setup.config.train
    used: dict[int, int] = {}  # by images at once; 0: the model and all that belongs to it
    reason, trial = "", None
    memory = PeakMemory(fabric.device)
    base = memory.now()

    # larger and larger, until memory is refused or would be
    powers = (2**power for power in range((train.batch_size - 1).bit_length()))  # those below the batch
    for count in (*powers, train.batch_size):
        guess = _guess(used, count)
        if fabric.device.type == "cpu" and guess > limit:  # a full host does not refuse, it kills
            reason = f"{count} would take about {_gib(guess)}, {_gib(limit)} are free"
            break
        try:
            if trial is None:
                trial = _Trial(setup, worst, fabric)
                used[0] = memory.now() - base
            used[count] = trial.measure(worst, count, memory) - base
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).split("\n")[0]
            break
        if used[count] > limit:
            reason = f"{count} take {_gib(used.pop(count))}, {_gib(limit)} are free"
            break
    return max(used, default=0), reason


class _Trial:
    """A copy of a training that may be spoiled."""

    def __init__(self, setup: TrainingSetup, worst: WorstCase, fabric: Fabric):
        self.train, self.masks = setup.config.train, setup.config.model.masks
        # learning rates by part need what only the real model's builder knows, and take no memory
        plain = self.train.model_copy(
            update={"lr_scale": {}, "layer_decay": 1.0, "head_steps": 0, "box_epochs": 0}
        )
        config = setup.config.model_copy(update={"train": plain})
        precision = copy.deepcopy(fabric.strategy.precision)
        alone = Fabric(strategy=SingleDeviceStrategy(device=fabric.device, precision=precision))
        network = copy.deepcopy(setup.model).train()
        self.state, wrapped = build_state(config, network, alone)
        self.passes = Passes(config, alone, wrapped, setup.criterion)
        # what the exchange between processes holds besides: a second set of gradients
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.exchange = [torch.empty_like(weight) for weight in weights] if fabric.world_size > 1 else []
        height, width = (min(_SMALL_SIDE, side) for side in worst.single_hw)
        self._step([_batch([(height, width)], 1, self.masks)])  # makes the optimiser's state

    def measure(self, worst: WorstCase, count: int, memory: PeakMemory) -> int:
        """Return the bytes in use at the peak of a step with so many images at once."""
        # where a step has several micro-batches, the gradient of the first is there as the second goes through
        batch = _batch(worst.sizes(count), worst.objects, self.masks)
        several = count < self.train.batch_size or self.train.accumulate > 1
        free_memory()
        memory.reset()
        self._step([batch, batch] if several else [batch])
        return memory.peak()

    def _step(self, batches: list[Batch]) -> None:
        single_step(self.passes, self.state.optimizer, batches, 0, ema=self.state.ema)


def _batch(sizes_hw: list[SizeHW], objects: int, masks: bool) -> Batch:
    """Make noise of the given sizes, with so many objects an image, and their masks where they are learned."""
    height, width = (max(side) for side in zip(*sizes_hw, strict=True))
    generator = torch.Generator().manual_seed(0)
    count = len(sizes_hw)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    padding_mask = torch.ones(count, height, width, dtype=torch.bool)
    for row, (own_height, own_width) in enumerate(sizes_hw):
        padding_mask[row, :own_height, :own_width] = False
    boxes = torch.rand(count * objects, 4, generator=generator) * 0.2 + 0.2
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    pixels = ~padding_mask.repeat_interleave(objects, dim=0) if masks else None
    truth = GroundTruth(labels, boxes, (objects,) * count, pixels)
    return Batch(images, padding_mask, truth, tuple(sizes_hw))


def _guess(used: dict[int, int], count: int) -> float:
    """Return the bytes that so many images would take, by the line through the two largest that were tried."""
    tried = sorted(used)[-2:]
    if len(tried) < 2:
        return 0.0
    slope = max(0.0, (used[tried[1]] - used[tried[0]]) / (tried[1] - tried[0]))
    return used[tried[1]] + slope * (count - tried[1])


def _limit(fabric: Fabric) -> float:
    """Return the bytes that this process may take; processes that share a host share its memory."""
    if fabric.world_size > 1:
        torch.distributed.barrier()
    share = _SHARE[fabric.device.type] * available_bytes(fabric.device)
    if fabric.world_size > 1:
        torch.distributed.barrier()  # or the first would take already what the others count
    on_host = int(os.environ.get("LOCAL_WORLD_SIZE", fabric.world_size))
    return share / on_host if fabric.device.type == "cpu" else share


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
