"""What is put on a training to time its parts: hooks on the model, and wrappers around what a step calls.

Nothing of the step is repeated here: what is measured is what trains.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast
from unittest import mock

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from detrkit.data.augment import augment_batch
from detrkit.losses.criterion import Criterion, Losses, Normalizers
from detrkit.preprocess import model_inputs
from detrkit.profiling.clock import PhaseClock
from detrkit.training import forward_backward as passes
from detrkit.training import step
from detrkit.training.ema import Ema
from detrkit.training.optim import apply_gradients
from detrkit.types import Batch, GroundTruth, Outputs

DATA, TRANSFER, AUGMENT, NORMALIZE = "data", "transfer", "augmentation on the device", "normalisation"
FORWARD, MATCHING, LOSS, BACKWARD = "forward", "matching", "loss", "backward"
OPTIMIZER, AVERAGE = "optimiser", "EMA"
_DEEPEST = 2
_TOLD = 2  # the model and what it calls; not what that calls


def part_phase(name: str, module: nn.Module) -> str:
    """The phase of a part's forward: its name, which a container numbers, and its class."""
    return f"{FORWARD}: {name} ({type(module).__name__})"


def model_parts(model: nn.Module) -> dict[str, nn.Module]:
    """Submodules that may be timed: the named children, and theirs."""
    return {name: module for name, module in model.named_modules() if name and len(name.split(".")) <= _DEEPEST}


@contextlib.contextmanager
def watch_model(model: nn.Module, clock: PhaseClock) -> Iterator[None]:
    """Time the forward of a model and of its parts; of a part inside a part only the outer one is told."""
    handles = []
    inside: list[nn.Module] = []
    for name, module in [("", model), *model_parts(model).items()]:
        phase = part_phase(name, module) if name else FORWARD

        def begin(part: nn.Module, _arguments: Any, phase: str = phase) -> None:
            if part is model:
                inside.clear()  # an error may have left the forward before without an end
            elif not inside:
                return  # by itself it is no part of a forward
            inside.append(part)
            if len(inside) <= _TOLD:
                clock.enter(phase)

        def end(part: nn.Module, _arguments: Any, _outputs: Any, phase: str = phase) -> None:
            if inside:
                inside.pop()
                if len(inside) < _TOLD:
                    clock.leave(phase)

        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class TimedCriterion:
    """A criterion whose matching and losses are timed; all else is the criterion's own."""

    def __init__(self, criterion: Criterion, clock: PhaseClock):
        self._criterion = criterion
        self._clock = clock
        cast("Any", criterion).matcher = clock.timed(MATCHING, criterion.matcher)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._criterion, name)

    def __call__(self, outputs: Outputs, truth: GroundTruth, normalizers: Normalizers | None = None) -> Losses:
        """The losses of a batch."""
        with self._clock.measure(LOSS), torch.profiler.record_function(LOSS):
            return self._criterion(outputs, truth, normalizers)


class StateSeen:
    """What of a training's state shows itself while it steps: the optimiser and the averaged weights."""

    def __init__(self) -> None:
        self.optimizer: torch.optim.Optimizer | None = None
        self.ema: Ema | None = None


@contextlib.contextmanager
def watch_step(fabric: Fabric, clock: PhaseClock, seen: StateSeen) -> Iterator[None]:
    """Time what a training step calls besides the model and the criterion."""
    update = Ema.update

    def apply(optimizer: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Tensor:
        seen.optimizer = optimizer
        return apply_gradients(optimizer, *args, **kwargs)

    def average(ema: Ema) -> None:
        seen.ema = ema
        update(ema)

    with contextlib.ExitStack() as stack:
        for owner, name, phase, work in (
            (Batch, "to", TRANSFER, Batch.to),
            (passes, "augment_batch", AUGMENT, augment_batch),
            (passes, "model_inputs", NORMALIZE, model_inputs),
            (step, "apply_gradients", OPTIMIZER, apply),
            (Ema, "update", AVERAGE, average),
            (fabric, "backward", BACKWARD, fabric.backward),
        ):
            stack.enter_context(mock.patch.object(owner, name, clock.timed(phase, cast("Any", work))))
        yield
