"""Everything that changes while a run trains, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from detrkit.errors import CheckpointError
from detrkit.training.alarms import Alarms
from detrkit.training.ema import Ema
from detrkit.training.health import Health
from detrkit.training.window import StepWindow


@dataclasses.dataclass
class Progress:
    """How far a run has come.

    Random numbers need no place here: the order of the images and their augmentation are functions of (seed,
    epoch, image), and dropout is seeded at each step from (seed, step, process).

    Attributes:
        step: Optimiser steps made.
        epoch: Epochs completed, their evaluation included.
        batch: Micro-batches of the present epoch that each process has consumed.
        best: Highest AP so far.
        evals_without_gain: Evaluations since then.
        metrics: What the last evaluation gave.
        micro_batch: Images through the network at once, since memory ran out; None: as configured.
        bad_steps: Steps in a row, the last included, whose loss or gradient was not finite.
        bad_steps_saved: How many of all such steps were saved for replay.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float | None = None
    evals_without_gain: int = 0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    micro_batch: int | None = None
    bad_steps: int = 0
    bad_steps_saved: int = 0


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
        """Tensors and primitives only."""
        return {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "window": self.window.state_dict(),
            "health": self.health.state_dict(),
            "alarms": self.alarms.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state.

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
        try:
            self.module.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.window.load_state_dict(state["window"])
            if "health" in state:  # checkpoints of before know nothing of it
                self.health.load_state_dict(state["health"])
                self.alarms.load_state_dict(state["alarms"])
            self.progress = Progress(**state["progress"])
            if self.scaler is not None:
                self.scaler.load_state_dict(state["scaler"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint does not fit the model to resume: {error}") from error
