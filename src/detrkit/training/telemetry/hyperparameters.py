"""A config as trackers want it: flat, of plain values, or as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from detrkit.config import Config

_ALWAYS = (
    "model.preset",
    "transforms.recipe",
    "train.epochs",
    "train.batch_size",
    "train.lr",
    "train.backbone_lr",
    "train.weight_decay",
    "train.schedule",
    "train.seed",
)
"""What runs are compared by, changed or not."""

_NEVER = ("data.", "train.trackers", "train.project", "train.device", "train.log_")
"""Where files lie and how it is told changes no result."""

Plain = str | int | float


def flat_config(config: Config) -> dict[str, Plain]:
    """Every value by its dotted key; what is no number is text."""
    return {key: _plain(value) for key, value in _flattened(config.model_dump(mode="json"))}


def telling_config(config: Config) -> dict[str, Plain]:
    """What makes this run: the main keys, and all that are not at their default."""
    defaults = flat_config(Config())
    return {
        key: value
        for key, value in flat_config(config).items()
        if key in _ALWAYS or (value != defaults.get(key) and not key.startswith(_NEVER))
    }


def config_text(config: Config) -> str:
    """The config file as a block of Markdown."""
    content = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None)
    return "".join(f"    {line}\n" for line in content.splitlines())


def _flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        flat += _flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return flat


def _plain(value: Any) -> Plain:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int | float | str):
        return value
    return ", ".join(map(str, value)) or "none"
