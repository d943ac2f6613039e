"""Forward and backward of a step's images in micro-batches, and a whole step of training by itself.

What a training does, a replay does again, and preflight, ``tune --lr-range`` and the search for a micro-batch try.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from detrkit.config import Config, Precision
from detrkit.data.augment import augment_batch, augments_on_device
from detrkit.distributed import exchanges_late, fabric_precision
from detrkit.losses.criterion import Criterion, Losses, Normalizers
from detrkit.preprocess import model_inputs
from detrkit.training.ema import Ema
from detrkit.training.memory import check_pixel_budget
from detrkit.training.optim import apply_gradients
from detrkit.types import Batch

LAYER = "layer/"
"""With what the names of a layer's values begin."""

Phase = Callable[[str], contextlib.AbstractContextManager[Any]]
"""Names a part of the step for whoever profiles; ``contextlib.nullcontext`` for a plain training, since
``torch.profiler.record_function`` would take some 20 us each time."""


@dataclasses.dataclass(frozen=True)
class Passes:
    """Forward and backward of a model, for the images and the number of any step.

    Args:
        config: Config of the run.
        fabric: Device and precision.
        model: Fabric's wrapper around the detector.
        criterion: Gives the losses.
        process: Number of the process, from 0; part of every seed.
        phase: Names the parts of the step.
    """

    config: Config
    fabric: Fabric
    model: Any
    criterion: Criterion
    process: int = 0
    phase: Phase = contextlib.nullcontext

    def gradients(
        self,
        batches: Sequence[Batch],
        normalizers: Normalizers,
        step: int,
        micro_batch: int,
        *,
        share: float = 1.0,
        damage: str = "",
    ) -> list[Losses]:
        """Pass every micro-batch forward and backward; gradients add up in the model.

        Args:
            batches: Batches on the host.
            normalizers: Normalisers of the whole step, on all processes.
            step: Number of the step, from 0.
            micro_batch: Images at once.
            share: Factor of the gradient; 0 for a process that has no image.
            damage: Fault of the boxes; if there is any, all gradients are NaN.
        """
        self.seed(step)
        late = exchanges_late(self.config.train)
        found = []
        left = sum(-(-len(batch.sizes_hw) // micro_batch) for batch in batches)
        for part in self.micro_batches(batches, step, micro_batch):
            left -= 1
            with self.fabric.no_backward_sync(self.model, enabled=late or left > 0):
                losses = self.losses(part, normalizers)
                total = losses.total.detach()
                # one loss that is not finite, or a damaged box, makes all gradients NaN: the step is then skipped
                factor = torch.where(total.isfinite(), math.nan if damage else share, math.nan)
                with self.phase("backward"):
                    self.fabric.backward(losses.total * factor)
            found.append(dataclasses.replace(losses, total=total))
        return found

    def seed(self, step: int) -> None:
        """Begin the random numbers of a step, those of dropout."""
        torch.manual_seed(step_seed(self.config.train.seed, step, self.process))

    def micro_batches(self, batches: Sequence[Batch], step: int, micro_batch: int) -> Iterator[Batch]:
        """Yield the batches on the device, augmented, in pieces that fit."""
        transforms = self.config.transforms
        for index, batch in enumerate(batches):
            with self.phase("transfer"):
                batch = batch.to(self.fabric.device, non_blocking=True)
            if augments_on_device(transforms, self.fabric.device.type):
                seed = step_seed(self.config.train.seed, step, self.process, index + 1)
                with self.phase("augmentation on the device"):
                    batch = augment_batch(batch, transforms, seed)
            yield from batch.split(micro_batch)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return what the model is given of a micro-batch on the device: normalised images and the padding mask.

        Raises:
            torch.OutOfMemoryError: They have more pixels than the budget.
        """
        check_pixel_budget(batch.images.shape, self.config.train.pixel_budget)
        with self.phase("normalisation"):
            return model_inputs(batch, self.config.transforms)

    def losses(self, batch: Batch, normalizers: Normalizers) -> Losses:
        """Pass a micro-batch on the device through model and criterion."""
        inputs = self.inputs(batch)
        with self.phase("forward"):
            outputs = self.model(*inputs, self.criterion.objects(batch.truth))
        with self.phase("loss"):
            return self.criterion(outputs, batch.truth, normalizers)


@dataclasses.dataclass(frozen=True)
class SingleStep:
    """Numbers of a step.

    Args:
        loss: Weighted total; NaN or infinite if the step was not finite, and no weight has changed then.
        grad_norm: Gradient norm before clipping; not finite where the loss is not.
        terms: Unweighted value of each term of the last layer.
    """

    loss: float
    grad_norm: float
    terms: Mapping[str, float]


def single_step(
    passes: Passes,
    optimizer: torch.optim.AdamW,
    batches: Sequence[Batch],
    step: int,
    micro_batch: int | None = None,
    *,
    ema: Ema | None = None,
) -> SingleStep:
    """Change the weights once, by the gradient of all batches together: without log, schedule or recovery.

    Args:
        passes: Passes of the model, which is in training mode; see :func:`single_passes`.
        optimizer: Optimiser from :func:`detrkit.training.optim.build_optimizer`, its learning rates set.
        batches: Batches on the host.
        step: Number of the step, from 0, by which dropout and augmentation are seeded.
        micro_batch: Images at once; all of a batch if not given.
        ema: Averaged weights.
    """
    normalizers = add_normalizers(passes.criterion, batches)
    most = max(len(batch.sizes_hw) for batch in batches)
    losses = passes.gradients(batches, normalizers, step, micro_batch or most)
    scaler = getattr(passes.fabric.strategy.precision, "scaler", None)
    norm = apply_gradients(optimizer, passes.config.train.clip_norm, scaler)
    optimizer.zero_grad(set_to_none=True)
    if ema is not None:
        ema.update()
    values = {name: float(value) for name, value in summed_values(losses).items()}
    return SingleStep(values.pop("loss"), float(norm), values)


def single_passes(
    config: Config, model: nn.Module, criterion: Criterion, device: torch.device, precision: Precision = "32"
) -> Passes:
    """Return the passes of a model trained by this process alone, batches as a whole; moves it to the device."""
    whole = config.train.model_copy(update={"pixel_budget": None})
    strategy = SingleDeviceStrategy(device=device)
    fabric = Fabric(accelerator=device.type, strategy=strategy, precision=fabric_precision(precision, device))
    wrapped = fabric.setup_module(model.to(memory_format=torch.channels_last))
    wrapped.train()
    return Passes(config.model_copy(update={"train": whole}), fabric, wrapped, criterion)


def add_normalizers(criterion: Criterion, batches: Sequence[Batch]) -> Normalizers:
    """Return the normalisers of all batches together."""
    found = (criterion.normalizers(batch.truth.counts) for batch in batches)
    return reduce(add, found, Normalizers(0.0, 0.0))


def summed_values(found: Sequence[Losses]) -> dict[str, Tensor]:
    """Return the values of the whole step: normalised losses summed over micro-batches, error rates averaged."""
    values = {"loss": torch.stack([losses.total for losses in found]).sum()}
    for name in found[0].terms:
        column = torch.stack([losses.terms[name] for losses in found])
        values[name] = column.mean() if name.endswith("error") else column.sum()
    return values


def layer_values(found: Sequence[Losses]) -> dict[str, Tensor]:
    """Sum each term of every decoder layer over micro-batches; named ``layer/TERM/NUMBER``, numbers from 1."""
    return {
        f"{LAYER}{name}/{number}": value
        for name in found[0].layer_terms
        for number, value in enumerate(torch.stack([losses.layer_terms[name] for losses in found]).sum(0), start=1)
    }


def step_seed(*numbers: int) -> int:
    """Return the seed of a step's dropout or augmentation; a function, so nothing has to be saved."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
