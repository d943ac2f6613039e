"""A line of training progress, as metrics.jsonl, TensorBoard and trackers have it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """One line of training progress, averaged over the steps since the line before.

    Args:
        step: Optimiser steps made.
        epoch: Epoch of the step, from 0.
        loss: Weighted sum over terms and layers.
        terms: Unweighted value of each term.
        lrs: Learning rate of each part; ``model`` is all that has none of its own.
        grad_norm: Before clipping.
        images_per_s: Over all processes.
        data_wait: Share of the time spent waiting for data, 0 to 1.
        memory_gib: Peak of the GPU's memory, or the resident memory of the process.
        layers: Unweighted value of each term for every decoder layer, the last one last.
        grad_norms: Gradient norm of each part, before clipping.
        clipped: Share of the steps whose gradient was clipped, 0 to 1.
        loss_scale: What the loss is multiplied by in float16.
        host_gib: Resident memory of the process, where ``memory_gib`` is that of a GPU.
        micro_batch: Images through the network at once.
        health: Figures of the network's outputs, see :class:`detrkit.training.health.Health`.
    """

    step: int
    epoch: int
    loss: float
    terms: Mapping[str, float]
    lrs: Mapping[str, float]
    grad_norm: float
    images_per_s: float
    data_wait: float
    memory_gib: float
    layers: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    grad_norms: Mapping[str, float] = dataclasses.field(default_factory=dict)
    clipped: float | None = None
    loss_scale: float | None = None
    host_gib: float | None = None
    micro_batch: int | None = None
    health: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """What metrics.jsonl holds of it, by key; what is not known is left out."""
        rates = {"lr" if name == "model" else f"lr_{name}": value for name, value in self.lrs.items()}
        layers = {name: list(values) for name, values in self.layers.items()}
        rest = {
            "clipped": self.clipped,
            "loss_scale": self.loss_scale,
            "host_gib": self.host_gib,
            "micro_batch": self.micro_batch,
        }
        return {
            "loss": self.loss,
            **{f"loss_{name}": value for name, value in self.terms.items()},
            **rates,
            "grad_norm": self.grad_norm,
            **{f"grad_norm_{name}": value for name, value in self.grad_norms.items()},
            "images_per_s": self.images_per_s,
            "data_wait": self.data_wait,
            "memory_gib": self.memory_gib,
            **{name: value for name, value in rest.items() if value is not None},
            **({"layers": layers} if layers else {}),
            **self.health,
        }

    def tags(self) -> dict[str, float]:
        """The same for TensorBoard and trackers, which make a group of what stands before the first slash."""
        rest = {
            "gradient/clipped": self.clipped,
            "gradient/loss_scale": self.loss_scale,
            "memory/host_gib": self.host_gib,
            "speed/micro_batch": self.micro_batch,
        }
        return {
            "loss/total": self.loss,
            **{f"loss/{name}": value for name, value in self.terms.items()},
            **{
                f"layers/{name}/{number}": value
                for name, values in self.layers.items()
                for number, value in enumerate(values, start=1)
            },
            **{f"lr/{name}": value for name, value in self.lrs.items()},
            "gradient/norm": self.grad_norm,
            **{f"gradient/norm_{name}": value for name, value in self.grad_norms.items()},
            "speed/images_per_s": self.images_per_s,
            "speed/data_wait": self.data_wait,
            "memory/gib": self.memory_gib,
            **{tag: float(value) for tag, value in rest.items() if value is not None},
            **{f"health/{name}": value for name, value in self.health.items()},
        }
