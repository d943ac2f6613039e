"""A training in progress: its parts, and how they are put together or restored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detrkit.checkpoint import CheckpointStore
from detrkit.classes import ClassMap
from detrkit.config import Config
from detrkit.errors import CheckpointError
from detrkit.families.parts import find_places
from detrkit.losses.criterion import Criterion, Normalizers
from detrkit.training.alarms import Alarms
from detrkit.training.ema import Ema
from detrkit.training.forward_backward import Passes
from detrkit.training.health import Health
from detrkit.training.optim import build_optimizer
from detrkit.training.signals import StopRequest
from detrkit.training.state import Progress, TrainingState
from detrkit.training.telemetry.log import RunLog
from detrkit.training.window import StepWindow
from detrkit.types import Batch

Evaluate = Callable[[nn.Module], Mapping[str, float]]
DrawSamples = Callable[[nn.Module], Sequence[tuple[str, np.ndarray]]]
OnEvaluation = Callable[[int, Mapping[str, float]], bool]


@dataclasses.dataclass(frozen=True)
class LastStep:
    """The step before the present one, until its values have reached the host.

    A bad step is known of one step late, and changed no weight: then all is still here to repeat it.

    Args:
        step: Its number, from 1.
        epoch: Its epoch, from 1.
        names: Of the values: the loss and its terms, ``grad_norm``; ``own_grad_norm`` of this process before the
            processes' average, where there are several; ``scale`` of the loss, where float16 has one.
        values: float32 on the host, once ``arrived``.
        arrived: Waits until they are there; by then they are.
        batches: What it was trained on, on the host.
        normalizers: Of its losses.
        share: 0 if this process had no image and took part with a blank one, otherwise 1.
        micro_batch: Images at once.
        training: Whether each module of the model was in training mode.
        damage: What was wrong with its boxes, known beforehand; empty if nothing.
    """

    step: int
    epoch: int
    names: tuple[str, ...]
    values: Tensor
    arrived: Callable[[], None]
    batches: Sequence[Batch]
    normalizers: Normalizers
    share: float
    micro_batch: int
    training: tuple[bool, ...]
    damage: str


@dataclasses.dataclass
class Run:
    """The parts of a training, handed from function to function."""

    config: Config
    class_map: ClassMap
    run_dir: Path
    fabric: Fabric
    model: Any  # Fabric's wrapper, which brings mixed precision and gradient exchange; its inside is state.module
    criterion: Criterion
    loader: DataLoader[Batch | None]
    evaluate: Evaluate
    draw_samples: DrawSamples | None
    on_evaluation: OnEvaluation | None
    state: TrainingState
    log: RunLog
    store: CheckpointStore
    stop: StopRequest
    batches_per_epoch: int
    total_steps: int
    host_group: Any
    saved_at_s: float
    saved_step: int = -1
    last_step: LastStep | None = None

    @property
    def epoch(self) -> int:
        """The present epoch as people count, from 1."""
        return self.state.progress.epoch + 1

    @property
    def passes(self) -> Passes:
        """What makes the gradients of a step."""
        return Passes(self.config, self.fabric, self.model, self.criterion, self.fabric.global_rank)

    @property
    def micro_batch(self) -> int:
        """Images through the network at once."""
        config = self.config.train
        configured = config.micro_batch if isinstance(config.micro_batch, int) else config.batch_size
        found = self.state.progress.micro_batch
        return min(configured, config.batch_size, found if found is not None else configured)


def build_state(
    config: Config, model: nn.Module, fabric: Fabric, new: Collection[str] = ()
) -> tuple[TrainingState, Any]:
    """The state at the beginning, and Fabric's wrapper around the model."""
    # the layout that the fast convolutions want; the numbers stay the same
    model.to(memory_format=torch.channels_last)
    wrapped = fabric.setup_module(model)
    window, health = StepWindow(), Health()
    if fabric.world_size > 1:
        window = StepWindow(lambda rows: cast("Tensor", fabric.all_reduce(rows, reduce_op="mean")))
        health = Health(lambda rows: cast("Tensor", fabric.all_reduce(rows, reduce_op="sum")))
    state = TrainingState(
        module=model,
        optimizer=build_optimizer(model, config.train, find_places(model), new),
        scaler=getattr(fabric.strategy.precision, "scaler", None),
        ema=Ema(model, config.train.ema_decay) if config.train.ema_decay is not None else None,
        window=window,
        health=health,
        alarms=Alarms(config),
        progress=Progress(),
    )
    return state, wrapped


def resume_state(state: TrainingState, resume: Mapping[str, Any], fabric: Fabric) -> Mapping[str, Any]:
    """Restore a saved state; returns where its log ended, as :meth:`RunLog.position` told."""
    processes = resume.get("world_size")
    if processes != fabric.world_size:
        raise CheckpointError(
            f"the run was trained by {processes} processes and is resumed by {fabric.world_size}, which would "
            "repeat and leave out images; use as many, or begin a new run from its weights with train.init"
        )
    state.load_state_dict(resume)
    found: Mapping[str, Any] = resume.get("log") or {"records": resume.get("records", 0)}
    return found
