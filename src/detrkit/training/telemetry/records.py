"""A line of training progress, and a config, as metrics.jsonl, TensorBoard and trackers have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from detrkit.config import Config
from detrkit.files import read_facts

_ALWAYS = (
    *("model.preset", "transforms.recipe", "train.epochs", "train.batch_size", "train.lr", "train.backbone_lr"),
    *("train.weight_decay", "train.schedule", "train.seed"),
)
"""Config keys that runs are compared by, changed or not."""

_TAGS: Mapping[str, str] = read_facts(__file__)
"""Tags of TensorBoard by the fields of a record that are single numbers, in the order of metrics.jsonl."""

_NEVER = ("data.", "train.trackers", "train.project", "train.device", "train.log_")
"""Beginnings of the config keys that change no result."""


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """One line of training progress, averaged over the steps since the line before.

    Args:
        step: optimiser steps made.
        epoch: epoch of the step, from 1.
        loss: weighted sum over terms and layers.
        terms: unweighted value of each term.
        lrs: learning rate of each part; ``model`` is all that has none of its own.
        grad_norm: gradient norm before clipping.
        images_per_s: images a second over all processes.
        data_wait: share of the time spent waiting for data, 0 to 1.
        memory_gib: peak of the GPU's memory, or the resident memory of the process.
        layers: unweighted value of each term for every decoder layer, the last one last.
        clipped: share of the steps whose gradient was clipped, 0 to 1.
        loss_scale: factor of the loss in float16.
        host_gib: resident memory of the process, where ``memory_gib`` is that of a GPU.
        micro_batch: images through the network at once.
        health: figures of the network's outputs, see :class:`detrkit.training.health.Health`.
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
    clipped: float | None = None
    loss_scale: float | None = None
    host_gib: float | None = None
    micro_batch: int | None = None
    health: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """Return the values by key of metrics.jsonl; what is not known is left out."""
        values: dict[str, Any] = {
            "loss": self.loss,
            **{f"loss_{name}": value for name, value in self.terms.items()},
            **{"lr" if name == "model" else f"lr_{name}": value for name, value in self.lrs.items()},
            **{name: getattr(self, name) for name in _TAGS},
            "layers": {name: list(values) for name, values in self.layers.items()} or None,
            **self.health,
        }
        return {name: value for name, value in values.items() if value is not None}

    def tags(self) -> dict[str, float]:
        """Return the values by tag of TensorBoard, which makes a group of what stands before the first slash."""
        values: dict[str, float | None] = {
            "loss/total": self.loss,
            **{f"loss/{name}": value for name, value in self.terms.items()},
            **{f"lr/{name}": value for name, value in self.lrs.items()},
            **{tag: getattr(self, name) for name, tag in _TAGS.items()},
            **{f"health/{name}": value for name, value in self.health.items()},
        }
        for name, layers in self.layers.items():
            values |= {f"layers/{name}/{number}": value for number, value in enumerate(layers, start=1)}
        return {tag: float(value) for tag, value in values.items() if value is not None}


def flat_config(config: Config) -> dict[str, str | int | float]:
    """Return every config value by its dotted key; what is no number is text."""
    flat: dict[str, str | int | float] = {}

    def add(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                add(value, f"{prefix}{key}.")
            elif isinstance(value, bool) or value is None:
                flat[prefix + key] = str(value).lower()
            elif isinstance(value, int | float | str):
                flat[prefix + key] = value
            else:
                flat[prefix + key] = ", ".join(map(str, value)) or "none"

    add(config.model_dump(mode="json"), "")
    return flat


def telling_config(config: Config) -> dict[str, str | int | float]:
    """Return the flat config values that make this run: the main keys, and all that are not at their default."""
    defaults = flat_config(Config())
    return {
        key: value
        for key, value in flat_config(config).items()
        if key in _ALWAYS or (value != defaults.get(key) and not key.startswith(_NEVER))
    }


def config_text(config: Config) -> str:
    """Return the config file as a block of Markdown."""
    content = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None)
    return "".join(f"    {line}\n" for line in content.splitlines())
