"""Training recipes: ``plain``, as published, ``fast``, which learns from scratch and from little data, ``deim``.

A recipe sets values of the config that change how a model is trained, never what it computes. ``plain`` sets
nothing: the defaults of the config are what was published (arXiv:2005.12872, section 4 and A.4). No torch in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.config import Config, read_config, update_config
from detrkit.families.presets import PRESETS, get_preset

FAST: dict[str, Any] = {
    "aids.dense": "center",
    "train.clip_norm": 5.0,
    "train.schedule": "cosine",
    "train.warmup_steps": 100,
    "train.ema_decay": 0.998,
}
"""What pays whatever the weights begin as; docs/from-scratch.md has the figures."""

FROM_SCRATCH: dict[str, Any] = {"train.lr": 3e-4, "train.backbone_lr": 3e-4, "train.muon": 0.0}
"""What ``fast`` sets besides where all weights begin at random: nothing there is worth keeping."""

DEIM: dict[str, Any] = {
    "loss.class_targets": "mal",
    "transforms.mosaic": 0.5,
    "transforms.mixup": 0.5,
    "transforms.close_after": 0.5,
    "train.schedule": "flat_cosine",
    "train.drop_at": 0.5,
    "train.drop_factor": 0.5,
}
"""What ``deim`` sets over what would be set anyway (arXiv:2412.04234): more objects an image, each matched with
one query, for half of the training; a loss that teaches poor boxes too; a rate that falls in the other half."""


def resolve_recipe(config: Config) -> str:
    """Return the recipe that ``train.recipe`` names; ``auto`` is ``fast`` without pretrained weights."""
    if config.train.recipe != "auto":
        return config.train.recipe
    return "fast" if _from_scratch(config) else "plain"


def preset_config(name: str) -> Config:
    """Return the config of a preset, with the recipe that is its default.

    Raises:
        UsageError: There is no such preset.
    """
    return resolve_config(name, None, {})


def resolve_config(preset: str, config_file: str | Path | None, changes: Mapping[str, Any]) -> Config:
    """Return the config of a training, each home of a value going over the one before.

    Defaults, then the preset, its recipe, the config file, and the changes: those of ``--set`` first, over them
    the command's own options or the function's arguments, which :mod:`detrkit.api` puts last.

    The recipe is the one that file or changes name, or that suits the starting weights that they name.

    Raises:
        UsageError: There is no such preset.
        ConfigError: The file or a change is wrong.
    """
    own = get_preset(preset).config()
    asked = _changed(own, config_file, changes)
    recipe = resolve_recipe(asked)
    base = update_config(own, {"train.init": asked.train.init})
    trained = update_config(base, _recipe_values(base, recipe))
    return update_config(_changed(trained, config_file, changes), {"train.recipe": recipe})


def _changed(base: Config, config_file: str | Path | None, changes: Mapping[str, Any]) -> Config:
    return update_config(read_config(config_file, base) if config_file is not None else base, changes)


def _recipe_values(config: Config, recipe: str) -> Mapping[str, Any]:
    """Return what a recipe sets: nothing if ``plain``, for presets and defaults are what was published."""
    if recipe == "deim":
        return {**_recipe_values(config, "fast" if _from_scratch(config) else "plain"), **DEIM}
    if recipe == "plain":
        return {}
    own = get_preset(config.model.preset).fast
    if _from_scratch(config):
        return {**FAST, **FROM_SCRATCH, **own}
    return {**FAST, **{key: value for key, value in own.items() if key not in FROM_SCRATCH}}


def _from_scratch(config: Config) -> bool:
    """Return whether training starts without pretrained weights: none are asked for, or none can be had."""
    preset = PRESETS.get(config.model.preset)
    having = preset is not None and (preset.published is not None or preset.backbone_file is not None)
    return config.train.init == "none" or not having
