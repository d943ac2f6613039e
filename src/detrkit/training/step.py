"""One change of the weights, from ``accumulate`` batches on each process.

What memory does not hold at once goes through the network in micro-batches; the gradient stays that of all images.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add

import numpy as np
import torch
from torch import Tensor, nn

from detrkit.data.device import augment_batch, augments_on_device
from detrkit.losses.criterion import Losses, Normalizers
from detrkit.ops.images import normalize_images
from detrkit.training.memory import check_pixel_budget, free_memory, halved, is_out_of_memory
from detrkit.training.nonfinite import count_bad_step, find_damage, note_step, settle
from detrkit.training.optim import apply_gradients, lr_factor, set_lr
from detrkit.training.processes import average_gradients
from detrkit.training.run import Run
from detrkit.types import Batch, GroundTruth


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all processes agree on before a step: its normalisers and images, and whether to stop or save."""

    normalizers: Normalizers
    images: int
    stop: bool
    save: bool


def agree(run: Run, batches: Sequence[Batch]) -> Plan:
    """Add up over batches and processes, on the host, so that no device is waited for.

    Gradients are averaged over processes while losses are to be summed, therefore the normalisers are divided
    by the number of processes: the step is that of all images as one batch.

    Raises:
        NonFiniteError: Too many steps in a row were not finite.
    """
    normalizers = reduce(
        add, (run.criterion.normalizers(batch.truth.counts) for batch in batches), Normalizers(0.0, 0.0)
    )
    images = sum(len(batch.truth.counts) for batch in batches)
    config = run.config.train
    save = time.monotonic() - run.saved_at_s > 60 * config.save_every_min
    if config.save_every_steps is not None:
        save |= (run.state.progress.step + 1) % config.save_every_steps == 0
    if run.fabric.world_size == 1:
        count_bad_step(run, run.was_bad)
        return Plan(normalizers, images, stop=False, save=save)
    first = run.fabric.is_global_zero
    sums = (normalizers.num_boxes, normalizers.class_weight, images)
    num_boxes, class_weight, images_of_all, stops, saves, bad = _sum_on_hosts(
        run, (*sums, run.stop.requested, first and save, bool(run.was_bad))
    )
    count_bad_step(run, None if run.was_bad is None else bad > 0)
    world_size = run.fabric.world_size
    shared = Normalizers(num_boxes / world_size, class_weight / world_size)
    return Plan(shared, int(images_of_all), stop=stops > 0, save=saves > 0)


def train_step(run: Run, batches: Sequence[Batch], plan: Plan) -> None:
    """Change the weights once, by the gradient of all images together.

    Raises:
        MemoryExhaustedError: Memory does not hold a single image.
    """
    config, state = run.config.train, run.state
    step = state.progress.step
    set_lr(state.optimizer, lr_factor(step, run.total_steps, config))
    # a process without images takes part with a loss of zero: the others wait for its gradients
    share = 1.0 if batches else 0.0
    damage = find_damage(batches)
    statistics = _MovingStatistics(state.module)
    batches = batches or [_blank_batch()]
    found = _gradients_in_memory(run, batches, plan.normalizers, share, damage, statistics)
    settle(run)  # the matcher has waited for the device, so the step before is over; its weights are still here
    scale = state.scaler._get_scale_async() if state.scaler is not None else None
    scale = None if scale is None else scale.clone()  # torch's scaler gives it without waiting only there
    norm = apply_gradients(state.optimizer, config.clip_norm, state.scaler)
    state.optimizer.zero_grad(set_to_none=True)
    statistics.restore(where=~norm.isfinite())  # a skipped step moves nothing
    if state.ema is not None:
        state.ema.update()
    values = {**{name: value * share for name, value in _summed(found).items()}, "grad_norm": norm}
    image_ids = tuple(itertools.chain.from_iterable(batch.image_ids for batch in batches))
    row = state.window.add(step + 1, values, image_ids, plan.images)
    facts = {
        "step": step + 1,
        "epoch": run.epoch,
        "names": tuple(values),
        "batches": batches,
        "normalizers": plan.normalizers,
        "micro_batch": run.micro_batch,
        "damage": damage,
    }
    note_step(run, facts, row, scale)


class _MovingStatistics:
    """Buffers that a forward pass changes, those of batch norms that are trained, and how they were before it."""

    def __init__(self, module: nn.Module):
        norms = (part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
        self._live = [buffer for norm in norms if norm.training for buffer in norm.buffers()]
        self._before = [buffer.clone() for buffer in self._live]

    def restore(self, where: Tensor | None = None) -> None:
        """Bring them back; with a flag on the device, only if it is set."""
        for live, before in zip(self._live, self._before, strict=True):
            live.copy_(before if where is None else torch.where(where, before, live))


def _gradients_in_memory(
    run: Run,
    batches: Sequence[Batch],
    normalizers: Normalizers,
    share: float,
    damage: str,
    statistics: _MovingStatistics,
) -> list[Losses]:
    """The gradients of a step; where memory runs out, again with half as many images at once on all processes."""
    recovers = run.config.train.on_oom == "halve"
    while True:
        problem, found = "", []
        try:
            found = _gradients(run, batches, normalizers, share, damage)
        except Exception as error:
            if not recovers or not is_out_of_memory(error):
                raise
            problem = str(error).split("\n")[0]  # not the error itself, whose traceback holds all activations
        failed = bool(problem)
        if recovers and run.fabric.world_size > 1:
            failed = _sum_on_hosts(run, (failed,))[0] > 0
        if not failed:
            if run.fabric.world_size > 1 and recovers:
                average_gradients(run.state.module.parameters(), run.fabric.world_size)
            return found
        run.state.optimizer.zero_grad(set_to_none=True)
        statistics.restore()
        del found
        free_memory()
        problem = problem or "of another process"
        former = run.micro_batch
        run.state.progress.micro_batch = halved(former, problem)
        step = run.state.progress.step + 1
        run.log.event(
            step,
            run.epoch,
            f"memory ran out at step {step} ({problem}): from here on {run.micro_batch} images at once instead of "
            f"{former}; the step is repeated, and the gradient stays that of all images",
        )


def _gradients(
    run: Run, batches: Sequence[Batch], normalizers: Normalizers, share: float, damage: str
) -> list[Losses]:
    """Forward and backward of every micro-batch."""
    torch.manual_seed(step_seed(run.config.train.seed, run.state.progress.step, run.fabric.global_rank))
    # exchanging gradients inside the backward pass would leave the others waiting for a process out of memory
    late = run.config.train.on_oom == "halve"
    found = []
    left = sum(-(-len(batch.sizes_hw) // run.micro_batch) for batch in batches)
    for part in _micro_batches(run, batches):
        left -= 1
        with run.fabric.no_backward_sync(run.model, enabled=late or left > 0):
            losses = _losses(run, part, normalizers)
            total = losses.total.detach()
            # one loss that is not finite, or a damaged box, makes all gradients NaN: the step is then skipped
            factor = torch.where(total.isfinite(), math.nan if damage else share, math.nan)
            run.fabric.backward(losses.total * factor)
        found.append(dataclasses.replace(losses, total=total))
    return found


def _micro_batches(run: Run, batches: Sequence[Batch]) -> Iterator[Batch]:
    """The batches on the device, augmented, in pieces that fit."""
    transforms = run.config.transforms
    for index, batch in enumerate(batches):
        batch = batch.to(run.fabric.device, non_blocking=True)
        if augments_on_device(transforms, run.fabric.device.type):
            place = (run.config.train.seed, run.state.progress.step, run.fabric.global_rank, index + 1)
            batch = augment_batch(batch, transforms, step_seed(*place))
        yield from batch.split(run.micro_batch)


def _losses(run: Run, batch: Batch, normalizers: Normalizers) -> Losses:
    """Forward and criterion of a micro-batch on the device."""
    transforms = run.config.transforms
    padding_mask = batch.padding_mask if batch.is_padded else None
    check_pixel_budget(batch.images.shape, run.config.train.pixel_budget)
    images = normalize_images(batch.images, transforms.mean, transforms.std, padding_mask)
    outputs = run.model(images.contiguous(memory_format=torch.channels_last), padding_mask)
    return run.criterion(outputs, batch.truth, normalizers)


def _summed(found: Sequence[Losses]) -> dict[str, Tensor]:
    """Values of the whole step: normalised losses add up over micro-batches, error rates are averaged."""
    values = {"loss": torch.stack([losses.total for losses in found]).sum()}
    for name in found[0].terms:
        column = torch.stack([losses.terms[name] for losses in found])
        values[name] = column.mean() if name.endswith("error") else column.sum()
    return values


def _sum_on_hosts(run: Run, values: Sequence[float]) -> list[float]:
    """Each value summed over the processes, without a device."""
    summed = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(summed, group=run.host_group)
    return summed.tolist()


def _blank_batch() -> Batch:
    """One small black image without objects."""
    truth = GroundTruth(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,))
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    return Batch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), mask, truth, (), ((64, 64),))


def step_seed(*numbers: int) -> int:
    """Seed of a step's dropout or augmentation; a function, so nothing has to be saved or can shift it."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
