"""Forward and backward of a step's images in micro-batches: what a training does, and a replay does again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from detrkit.config import Config
from detrkit.data.augment import augment_batch, augments_on_device
from detrkit.losses.criterion import Criterion, Losses, Normalizers
from detrkit.preprocess import model_inputs
from detrkit.training.memory import check_pixel_budget
from detrkit.types import Batch

LAYER = "layer/"
"""With what the names of a layer's values begin."""


@dataclasses.dataclass(frozen=True)
class Passes:
    """What the passes of a step depend on, besides the images and the number of the step.

    Args:
        config: Of the run.
        fabric: Device and precision.
        model: Fabric's wrapper around the detector.
        criterion: Gives the losses.
        process: Number of the process, from 0; part of every seed.
    """

    config: Config
    fabric: Fabric
    model: Any
    criterion: Criterion
    process: int

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
        """Forward and backward of every micro-batch; gradients add up in the model.

        Args:
            batches: On the host.
            normalizers: Of the whole step, on all processes.
            step: Number of the step, from 0.
            micro_batch: Images at once.
            share: What the gradient is multiplied by; 0 for a process that has no image.
            damage: What is wrong with the boxes; if anything is, all gradients are NaN.
        """
        self.seed(step)
        # exchanging gradients inside the backward pass would leave the others waiting for a process out of memory
        late = self.config.train.on_oom == "halve"
        found = []
        left = sum(-(-len(batch.sizes_hw) // micro_batch) for batch in batches)
        for part in self.micro_batches(batches, step, micro_batch):
            left -= 1
            with self.fabric.no_backward_sync(self.model, enabled=late or left > 0):
                losses = self.losses(part, normalizers)
                total = losses.total.detach()
                # one loss that is not finite, or a damaged box, makes all gradients NaN: the step is then skipped
                factor = torch.where(total.isfinite(), math.nan if damage else share, math.nan)
                self.fabric.backward(losses.total * factor)
            found.append(dataclasses.replace(losses, total=total))
        return found

    def seed(self, step: int) -> None:
        """Begin the random numbers of a step, those of dropout."""
        torch.manual_seed(step_seed(self.config.train.seed, step, self.process))

    def micro_batches(self, batches: Sequence[Batch], step: int, micro_batch: int) -> Iterator[Batch]:
        """The batches on the device, augmented, in pieces that fit."""
        transforms = self.config.transforms
        for index, batch in enumerate(batches):
            batch = batch.to(self.fabric.device, non_blocking=True)
            if augments_on_device(transforms, self.fabric.device.type):
                place = (self.config.train.seed, step, self.process, index + 1)
                batch = augment_batch(batch, transforms, step_seed(*place))
            yield from batch.split(micro_batch)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What the model is given of a micro-batch on the device: normalised images and the padding mask.

        Raises:
            torch.OutOfMemoryError: They have more pixels than the budget.
        """
        check_pixel_budget(batch.images.shape, self.config.train.pixel_budget)
        return model_inputs(batch, self.config.transforms)

    def losses(self, batch: Batch, normalizers: Normalizers) -> Losses:
        """Forward and criterion of a micro-batch on the device."""
        outputs = self.model(*self.inputs(batch), self.criterion.objects(batch.truth))
        return self.criterion(outputs, batch.truth, normalizers)


def summed_values(found: Sequence[Losses]) -> dict[str, Tensor]:
    """Values of the whole step: normalised losses add up over micro-batches, error rates are averaged."""
    values = {"loss": torch.stack([losses.total for losses in found]).sum()}
    for name in found[0].terms:
        column = torch.stack([losses.terms[name] for losses in found])
        values[name] = column.mean() if name.endswith("error") else column.sum()
    return values


def layer_values(found: Sequence[Losses]) -> dict[str, Tensor]:
    """Each term of every decoder layer, summed over micro-batches; named ``layer/TERM/NUMBER``, numbers from 1."""
    return {
        f"{LAYER}{name}/{number}": value
        for name in found[0].layer_terms
        for number, value in enumerate(torch.stack([losses.layer_terms[name] for losses in found]).sum(0), start=1)
    }


def step_seed(*numbers: int) -> int:
    """Seed of a step's dropout or augmentation; a function, so nothing has to be saved or can shift it."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
