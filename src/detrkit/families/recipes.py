"""Training recipes: ``plain``, as published, and ``fast``, which learns from scratch and from little data.

A recipe sets values of the config that change how a model is trained, never what it computes. No torch in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.config import Config, read_config, update_config
from detrkit.families import PRESETS, get_preset
from detrkit.families.preset import Preset

PLAIN: dict[str, Any] = {
    "model.query_init": "normal",
    "loss.class_targets": "hard",
    "aids.dense": "none",
    "aids.groups": 1,
    "aids.denoising": 0,
    "train.lr": 1e-4,
    "train.backbone_lr": 1e-5,
    "train.clip_norm": 0.1,
    "train.schedule": "step",
    "train.warmup_steps": 0,
    "train.ema_decay": None,
}
"""As published (arXiv:2005.12872, section 4 and A.4, and the published code)."""

FAST: dict[str, Any] = {
    "aids.dense": "center",
    "train.clip_norm": 5.0,
    "train.schedule": "cosine",
    "train.warmup_steps": 100,
    "train.ema_decay": 0.998,
}
"""What pays whatever the weights begin as; docs/from-scratch.md has the figures."""

FROM_SCRATCH: dict[str, Any] = {"train.lr": 3e-4, "train.backbone_lr": 3e-4}
"""What ``fast`` sets besides where all weights begin at random: nothing there is worth keeping."""


def resolve_recipe(config: Config) -> str:
    """``plain`` or ``fast``, as ``train.recipe`` says; ``auto`` is ``fast`` where no pretrained weights are."""
    if config.train.recipe != "auto":
        return config.train.recipe
    preset = PRESETS.get(config.model.preset)
    return "fast" if config.train.init == "none" or not _has_weights(preset) else "plain"


def apply_recipe(config: Config, name: str) -> Config:
    """The config with the values of a recipe.

    Args:
        config: Of a preset.
        name: ``plain`` or ``fast``.
    """
    preset = PRESETS.get(config.model.preset)
    values: Mapping[str, Any] = PLAIN
    if name == "fast":
        scratch = FROM_SCRATCH if config.train.init == "none" or not _has_weights(preset) else {}
        values = {**FAST, **scratch, **(preset.fast if preset is not None else {})}
    return update_config(config, {**values, "train.recipe": name})


def preset_config(name: str) -> Config:
    """The config of a preset, with the recipe that is its default.

    Raises:
        UsageError: There is no such preset.
    """
    config = get_preset(name).config()
    return apply_recipe(config, resolve_recipe(config))


def resolve_config(preset: str, config_file: str | Path | None, changes: Mapping[str, Any]) -> Config:
    """The preset, the recipe over it, the file over both, then changes.

    The recipe is the one that file or changes name, or that suits the starting weights that they name.

    Raises:
        UsageError: There is no such preset.
        ConfigError: The file or a change is wrong.
    """
    base = get_preset(preset).config()
    asked = _changed(base, config_file, changes)
    start = update_config(base, {"train.init": asked.train.init})
    name = resolve_recipe(asked)
    return update_config(_changed(apply_recipe(start, name), config_file, changes), {"train.recipe": name})


def _changed(base: Config, config_file: str | Path | None, changes: Mapping[str, Any]) -> Config:
    return update_config(read_config(config_file, base) if config_file is not None else base, changes)


def _has_weights(preset: Preset | None) -> bool:
    """Whether pretrained weights of a preset can be had."""
    return preset is not None and (preset.published is not None or preset.backbone_file is not None)
