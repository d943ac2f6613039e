"""The parts of a training in progress: how they are saved and restored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detrkit.checkpoint import CheckpointStore, Count
from detrkit.classes import ClassMap
from detrkit.config import Config
from detrkit.errors import CheckpointError
from detrkit.evaluation.coco import UNDEFINED
from detrkit.families.family import BuiltModel
from detrkit.losses.criterion import Criterion, Normalizers
from detrkit.training.alarms import Alarms
from detrkit.training.ema import Ema
from detrkit.training.forward_backward import Passes, Phase
from detrkit.training.health import Health, StepWindow
from detrkit.training.signals import StopRequest
from detrkit.training.telemetry.log import RunLog
from detrkit.types import Batch

Evaluate = Callable[[nn.Module], Mapping[str, float]]
DrawSamples = Callable[[nn.Module], Sequence[tuple[str, np.ndarray]]]
OnEvaluation = Callable[[int, Mapping[str, float]], bool]


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """Everything that a training begins or goes on with, built and ready.

    Args:
        built: Model, trained in place, its classes, and the config with everything resolved that depends on
            weights, data and machine.
        criterion: Losses and their normalisers.
        loader: Training batches, or None where no image could be read; its ``batch_sampler`` has
            ``set_epoch(epoch, start_batch)``.
        data: What the training data is known again by; see :func:`detrkit.training.resuming.identify_data`.
    """

    built: BuiltModel
    criterion: Criterion
    loader: DataLoader[Batch | None]
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The config of the training."""
        return self.built.config

    @property
    def class_map(self) -> ClassMap:
        """The classes of the head; saved in every checkpoint."""
        return self.built.class_map

    @property
    def model(self) -> nn.Module:
        """The detector, ``model(images, padding_mask, objects) -> Outputs``."""
        return self.built.model

    @property
    def new(self) -> Collection[str]:
        """Names of the parameters without pretrained weights, which learn alone in ``train.head_steps``."""
        return () if self.built.report is None else self.built.report.new_tensors

    @property
    def batches_per_epoch(self) -> int:
        """Batches that each process sees in an epoch."""
        sampler: Any = self.loader.batch_sampler
        sampler.set_epoch(0, 0)  # the length is what is left of the epoch
        return len(self.loader)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return math.ceil(self.batches_per_epoch / self.config.train.accumulate) * self.config.train.epochs

    def with_config(self, config: Config) -> TrainingSetup:
        """Return the same with another config."""
        return dataclasses.replace(self, built=dataclasses.replace(self.built, config=config))


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    """How far a run has come.

    Random numbers need no place here: the order of the images and their augmentation are functions of (seed,
    epoch, image), and dropout is seeded at each step from (seed, step, process).

    Attributes:
        step: Optimiser steps made.
        epoch: Epochs completed, their evaluation included.
        batch: Micro-batches of the present epoch that each process has consumed.
        best: Highest AP so far, or PQ, see :func:`detrkit.training.telemetry.log.best_metric`; None while none
            could be measured.
        evals_without_gain: Evaluations since then that measured one.
        metrics: Numbers of the last evaluation.
        micro_batch: Images through the network at once, since memory ran out; None: as configured.
        bad_steps: Steps in a row, the last included, whose loss or gradient was not finite.
        bad_steps_saved: How many of all such steps were saved for replay.
    """

    step: Count = 0
    epoch: Count = 0
    batch: Count = 0
    best: float | None = None
    evals_without_gain: Count = 0
    metrics: dict[str, float] = {}
    micro_batch: Annotated[int, msgspec.Meta(ge=1)] | None = None
    bad_steps: Count = 0
    bad_steps_saved: Count = 0

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Progress:
        """Return the progress that a checkpoint holds.

        Raises:
            CheckpointError: It holds something else there.
        """
        try:
            return msgspec.convert(saved["progress"], cls)
        except (msgspec.ValidationError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoint's progress cannot be: {error}; use another checkpoint"
            ) from error

    def __post_init__(self) -> None:
        if self.best == UNDEFINED:  # as earlier versions noted that there was nothing to measure
            self.best = None


_PARTS = ("optimizer", "scaler", "ema", "window", "health", "alarms")


@dataclasses.dataclass
class TrainingState:
    """The model and all that moves with it; a run resumed from it goes on as if it had never stopped."""

    module: nn.Module
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler | None
    ema: Ema | None
    window: StepWindow
    health: Health
    alarms: Alarms
    progress: Progress

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and primitives only; all processes take part."""
        parts = {name: getattr(self, name) for name in _PARTS}
        saved = {name: None if part is None else part.state_dict() for name, part in parts.items()}
        return {"model": self.module.state_dict(), **saved, "progress": msgspec.to_builtins(self.progress)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state, but the optimiser's settings are those of the config.

        Raises:
            CheckpointError: It is of another model, lacks a part, or the config turned a part on or off.
        """
        for name, part in (("scaler", self.scaler), ("ema", self.ema)):
            if (part is None) != (state.get(name) is None):
                saved, now = ("has", "off") if part is None else ("lacks", "on")
                raise CheckpointError(
                    f"the checkpoint {saved} the state of the {name}, which the config turns {now}; "
                    "resume with the config of the run"
                )
        groups = [{key: group[key] for key in group if key != "lr"} for group in self.optimizer.param_groups]
        try:
            self.module.load_state_dict(state["model"])
            self.progress = Progress.of(state)
            for name in _PARTS:
                part = getattr(self, name)
                # checkpoints of before health and alarms know nothing of them
                if part is not None and (name in state or name not in ("health", "alarms")):
                    part.load_state_dict(state[name])
            for group, own in zip(self.optimizer.param_groups, groups, strict=True):
                group.update(own)
            for parameter, moments in self.optimizer.state.items():
                if any(moment.shape not in (parameter.shape, ()) for moment in moments.values()):
                    raise ValueError(f"the optimizer has moments of another shape than {tuple(parameter.shape)}")
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint does not fit the model to resume: {error}") from error


@dataclasses.dataclass(frozen=True)
class LastStep:
    """The step before the present one, until its values have reached the host.

    A bad step is known of one step late, and changed no weight: then all is still here to repeat it.

    Args:
        step: Its number, from 1.
        epoch: Its epoch, from 1.
        names: Names of the values: the loss and its terms, ``grad_norm``; ``own_grad_norm`` of this process before
            the processes' average, where there are several; ``scale`` of the loss, where float16 has one.
        values: float32 on the host, after ``arrival``.
        arrival: CUDA event of their arrival; None where they are there already.
        batches: Its batches, on the host.
        normalizers: Normalisers of its losses.
        share: 0 if this process had no image and took part with a blank one, otherwise 1.
        micro_batch: Images at once.
        training: Training mode of each module of the model.
        frozen: Names of the parameters without gradients.
        damage: Fault of its boxes, known beforehand; empty if there is none.
    """

    step: int
    epoch: int
    names: tuple[str, ...]
    values: Tensor
    arrival: Any
    batches: Sequence[Batch]
    normalizers: Normalizers
    share: float
    micro_batch: int
    training: tuple[bool, ...]
    frozen: tuple[str, ...]
    damage: str


@dataclasses.dataclass
class Run:
    """A training in progress, handed from function to function."""

    setup: TrainingSetup
    run_dir: Path
    fabric: Fabric
    model: Any  # Fabric's wrapper, which brings mixed precision and gradient exchange; its inside is state.module
    evaluate: Evaluate
    draw_samples: DrawSamples | None
    on_evaluation: OnEvaluation | None
    phase: Phase
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
    def config(self) -> Config:
        """The config of the run."""
        return self.setup.config

    @property
    def epoch(self) -> int:
        """The present epoch as people count, from 1."""
        return self.state.progress.epoch + 1

    @property
    def passes(self) -> Passes:
        """Forward and backward of a step."""
        return Passes(
            self.config, self.fabric, self.model, self.setup.criterion, self.fabric.global_rank, self.phase
        )

    @property
    def micro_batch(self) -> int:
        """Images through the network at once."""
        config = self.config.train
        configured = config.micro_batch if isinstance(config.micro_batch, int) else config.batch_size
        found = self.state.progress.micro_batch
        return min(configured, config.batch_size, found if found is not None else configured)

    def payload(self) -> dict[str, Any]:
        """Return what a checkpoint of the run holds; all processes take part."""
        return {
            "config": self.config.model_dump(mode="json"),
            "class_map": self.setup.class_map.to_dict(),
            "data": dict(self.setup.data),
            "world_size": self.fabric.world_size,
            **self.state.state_dict(),
        }
