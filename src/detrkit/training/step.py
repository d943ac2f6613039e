"""One change of the weights, from ``accumulate`` micro-batches on each process."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
import torch
from torch import Tensor

from detrkit.data.device import augment_batch, augments_on_device
from detrkit.losses.criterion import Losses, Normalizers
from detrkit.ops.images import normalize_images
from detrkit.training.optim import apply_gradients, lr_factor, set_lr
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
    """Add up over micro-batches and processes, on the host, so that no device is waited for.

    Gradients are averaged over processes while losses are to be summed, therefore the normalisers are divided
    by the number of processes: the step is that of all images as one batch.
    """
    normalizers = reduce(
        add, (run.criterion.normalizers(batch.truth.counts) for batch in batches), Normalizers(0.0, 0.0)
    )
    images = sum(len(batch.truth.counts) for batch in batches)
    save = time.monotonic() - run.saved_at_s > 60 * run.config.train.save_every_min
    if run.fabric.world_size == 1:
        return Plan(normalizers, images, stop=False, save=save)
    first = run.fabric.is_global_zero
    values = (normalizers.num_boxes, normalizers.class_weight, images, run.stop.requested, first and save)
    summed = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(summed, group=run.host_group)
    num_boxes, class_weight, images_of_all, stops, saves = summed.tolist()
    world_size = run.fabric.world_size
    shared = Normalizers(num_boxes / world_size, class_weight / world_size)
    return Plan(shared, int(images_of_all), stop=stops > 0, save=saves > 0)


def train_step(run: Run, batches: Sequence[Batch], plan: Plan) -> None:
    """Change the weights once, by the gradient of all micro-batches together."""
    config, state = run.config.train, run.state
    step = state.progress.step
    torch.manual_seed(_step_seed(config.seed, step, run.fabric.global_rank))
    set_lr(state.optimizer, lr_factor(step, run.total_steps, config))
    # a process without images takes part with a loss of zero: the others wait for its gradients
    share = 1.0 if batches else 0.0
    batches = batches or [_blank_batch()]
    found: list[Losses] = []
    for index, batch in enumerate(batches):
        with run.fabric.no_backward_sync(run.model, enabled=index < len(batches) - 1):
            losses = _losses(run, batch, plan.normalizers, index)
            run.fabric.backward(losses.total * share)
        found.append(losses)
    norm = apply_gradients(state.optimizer, config.clip_norm, state.scaler)
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update()
    values = {name: value * share for name, value in _summed(found).items()}
    image_ids = tuple(itertools.chain.from_iterable(batch.image_ids for batch in batches))
    state.window.add(step + 1, {**values, "grad_norm": norm}, image_ids, plan.images)


def _losses(run: Run, batch: Batch, normalizers: Normalizers, index: int) -> Losses:
    """Forward and criterion of a micro-batch, the ``index``-th of its step."""
    transforms = run.config.transforms
    batch = batch.to(run.fabric.device, non_blocking=True)
    if augments_on_device(transforms, run.fabric.device.type):
        place = (run.config.train.seed, run.state.progress.step, run.fabric.global_rank, index + 1)
        batch = augment_batch(batch, transforms, _step_seed(*place))
    padding_mask = batch.padding_mask if batch.is_padded else None
    images = normalize_images(batch.images, transforms.mean, transforms.std, padding_mask)
    outputs = run.model(images.contiguous(memory_format=torch.channels_last), padding_mask)
    return run.criterion(outputs, batch.truth, normalizers)


def _summed(found: Sequence[Losses]) -> dict[str, Tensor]:
    """Values of the whole step: normalised losses add up over micro-batches, error rates are averaged."""
    values = {"loss": torch.stack([losses.total.detach() for losses in found]).sum()}
    for name in found[0].terms:
        column = torch.stack([losses.terms[name] for losses in found])
        values[name] = column.mean() if name.endswith("error") else column.sum()
    return values


def _blank_batch() -> Batch:
    """One small black image without objects."""
    truth = GroundTruth(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0,))
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    return Batch(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), mask, truth, (), ((64, 64),))


def _step_seed(*numbers: int) -> int:
    """Seed of a step's dropout or augmentation; a function, so nothing has to be saved or can shift it."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
