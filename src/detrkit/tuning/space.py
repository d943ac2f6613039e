"""Search space of a study: config keys with ranges or choices, from a YAML file or by default.

No torch and no Optuna in here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from detrkit.config import Config, read_yaml, update_config
from detrkit.errors import ConfigError, UsageError

# Trials with other values of these could not be compared, or would not be one process on one device.
_FIXED_KEYS = (
    *("data.root", "data.layout", "data.val_split", "data.val_annotations", "data.val_images"),
    *("model.preset", "model.family", "train.device", "train.devices", "train.num_nodes"),
    *("train.eval_every", "train.max_detections"),
)
_EMA_DECAYS = (0.99, 0.999, 0.9999)
# An average over 1 / (1 - decay) steps says something only if training is some times longer.
_LEAST_EMA_LENGTHS = 5


class Dimension(msgspec.Struct, frozen=True, omit_defaults=True):
    """One searched key.

    Args:
        key: dotted config key.
        low: least value of a range; None for choices.
        high: greatest value.
        log: True if drawn evenly in the logarithm.
        step: distance of the values of a range, if it is a grid.
        integer: True for whole numbers only.
        times: another key whose value the drawn number is multiplied with.
        choices: values to choose from instead.
    """

    key: str
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None
    integer: bool = False
    times: str | None = None
    choices: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """Name of the parameter, in the study and in tables."""
        return self.key if self.times is None else f"{self.key}/{self.times}"

    def suggest(self, trial: Any) -> Any:
        """Draw the parameter of an Optuna trial; choices that are lists are written as JSON."""
        if self.choices:
            return trial.suggest_categorical(self.name, [_label(choice) for choice in self.choices])
        assert self.low is not None and self.high is not None  # noqa: PT018
        if self.integer:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log, step=step)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log, step=self.step)

    def value(self, parameter: Any) -> Any:
        """Return the value that a parameter of the study stands for, before ``times``."""
        if not self.choices:
            return parameter
        return next(choice for choice in self.choices if _label(choice) == parameter)

    def parameter(self, config: Config) -> Any:
        """Return the parameter that gives the config's own value; KeyError if it is outside."""
        own = attrgetter(self.key)(config)
        if self.choices:
            if _label(own) not in map(_label, self.choices):
                raise KeyError(self.key)
            return _label(own)
        if self.times is not None:
            own = own / attrgetter(self.times)(config)
        assert self.low is not None and self.high is not None  # noqa: PT018
        if not isinstance(own, int | float) or not self.low <= own <= self.high:
            raise KeyError(self.key)
        return own


class _Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A range as a space file gives it."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None
    times: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"goes from {self.low:g} to {self.high:g}; expected low below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}, expected above 0 with log: true")
        if self.step is not None and (self.log or not 0 < self.step <= self.high - self.low):
            raise ValueError(f"step is {self.step:g}, expected above 0, at most high - low, and without log")


_RANGE_FIELDS = _Range.__struct_fields__


class Space(msgspec.Struct, frozen=True):
    """All searched keys."""

    dimensions: tuple[Dimension, ...]

    def apply(self, config: Config, parameters: Mapping[str, Any]) -> Config:
        """Return the config of a trial.

        Raises:
            ConfigError: The values do not go together.
        """
        values = {part.key: part.value(parameters[part.name]) for part in self.dimensions if part.times is None}
        for part in self.dimensions:
            if part.times is not None:
                other = values.get(part.times, attrgetter(part.times)(config))
                values[part.key] = parameters[part.name] * other
        # naming a recipe sets all its keys anew; the config's own may have been changed one by one
        if values.get("transforms.recipe") == config.transforms.recipe:
            del values["transforms.recipe"]
        return update_config(config, values)

    def own_parameters(self, config: Config) -> tuple[dict[str, Any], list[str]]:
        """Return the parameters that give the config itself, and the names of those that the space leaves out."""
        own, outside = {}, []
        for dimension in self.dimensions:
            try:
                own[dimension.name] = dimension.parameter(config)
            except KeyError:
                outside.append(dimension.name)
        return own, outside


def default_space(config: Config, steps: int) -> Space:
    """Return what is searched by default: around the config's own values, and only what has an effect.

    Args:
        config: config of the training to be tuned.
        steps: optimiser steps of a trial; a short training has no use for a long average of weights.
    """
    train = config.train
    dimensions = [Dimension("train.lr", train.lr / 10, train.lr * 10, log=True)]
    if train.backbone_lr > 0:
        ratio = train.backbone_lr / train.lr
        low, high = min(0.03, ratio / 3), max(1.0, ratio)
        dimensions.append(Dimension("train.backbone_lr", low, high, log=True, times="train.lr"))
    if train.weight_decay > 0:
        low, high = min(1e-5, train.weight_decay), max(1e-2, train.weight_decay)
        dimensions.append(Dimension("train.weight_decay", low, high, log=True))
    if train.schedule == "step":
        dimensions.append(Dimension("train.drop_at", min(0.6, train.drop_at), max(0.95, train.drop_at)))
    decays = [decay for decay in _EMA_DECAYS if steps * (1 - decay) >= _LEAST_EMA_LENGTHS]
    if train.ema_decay is not None and train.ema_decay not in decays:
        decays.append(train.ema_decay)
    if decays:
        dimensions.append(Dimension("train.ema_decay", choices=(None, *sorted(decays))))
    recipes = dict.fromkeys((config.transforms.recipe, "light", "strong"))
    dimensions.append(Dimension("transforms.recipe", choices=tuple(recipes)))
    return Space(tuple(dimensions))


def read_space(path: str | Path, config: Config) -> Space:
    """Read a space file: config keys, each with a range or a list of choices.

    Args:
        path: YAML such as ``train.lr: {low: 1e-5, high: 1e-3, log: true}``, ``transforms.recipe: [detr, light]``.
        config: config of the training to be tuned; every bound and choice is tried on it.

    Raises:
        UsageError: The file cannot be read, or holds an unknown key, an impossible range, or a value that the
            config does not take.
    """
    path = Path(path)
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise UsageError(
            f"{path} holds {'nothing' if not content else f'a {type(content).__name__}'}, expected config keys "
            "such as train.lr: {low: 1e-5, high: 1e-3, log: true}"
        )
    flat = _flat(content)
    keys = [key for key, _ in flat]
    try:
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise UsageError(f"{repeated[0]} stands there twice; expected each key once")
        space = Space(tuple(_dimension(key, value) for key, value in flat))
        _check(space, config)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return space


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten keys, dotted or nested by section; a mapping with a range in it ends the nesting."""
    found: list[tuple[str, Any]] = []
    for name, value in content.items():
        key = f"{prefix}{name}"
        is_section = isinstance(value, dict) and "." not in key and value.keys().isdisjoint(_RANGE_FIELDS)
        found += _flat(value, f"{key}.") if is_section else [(key, value)]
    return found


def _dimension(key: str, value: Any) -> Dimension:
    if key in _FIXED_KEYS:
        raise UsageError(f"{key} cannot be searched: trials would not be comparable, or not run; set it for all")
    if isinstance(value, list):
        if len({json.dumps(choice, default=str) for choice in value}) < max(len(value), 2):
            shown = json.dumps(value, default=str)
            raise UsageError(f"{key}: {shown} is no choice; expected two or more different values")
        # 16 and 32 are names there
        return Dimension(key, choices=tuple(map(str, value) if key == "train.precision" else value))
    try:
        # not strict: YAML 1.1 takes 1e-5, without a dot, for a text
        found = msgspec.convert(value, _Range, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{key} is {json.dumps(value, default=str)}: {error}; expected a list of choices, or a range "
            "{low: ..., high: ...} with log, step or times if you want"
        ) from error
    numbers = (found.low, found.high, found.step or 0)
    integer = found.times is None and all(isinstance(number, int) for number in numbers)
    return Dimension(key, found.low, found.high, found.log, found.step, integer, found.times)


def _check(space: Space, config: Config) -> None:
    """Try every bound and choice on the config, whose own errors are the best."""
    for part in space.dimensions:
        factor = None if part.times is None else _factor(part, space, config)
        for end in part.choices or (part.low, part.high):
            update_config(config, {part.key: end if factor is None else end * factor})
        if part.low is None or part.high is None or part.integer or factor is not None:
            continue
        try:  # a key that takes whole numbers only gives no range of fractions
            update_config(config, {part.key: part.low + (part.step or (part.high - part.low) * 0.618034)})
        except ConfigError as error:
            raise UsageError(f"{error}; write low and high as whole numbers") from error


def _factor(part: Dimension, space: Space, config: Config) -> float:
    """Return the config's value that a range is multiplied with."""
    assert part.times is not None
    try:
        value = attrgetter(part.times)(config)
    except AttributeError:
        update_config(config, {part.times: 1.0})  # whose error says what is wrong with the key
        raise
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UsageError(f"{part.key}: times is {part.times}, which is {value!r}, not a number above 0")
    if any(other.key == part.times and other.times is not None for other in space.dimensions):
        raise UsageError(f"{part.key}: times is {part.times}, which is itself a multiple")
    return float(value)


def _label(choice: Any) -> Any:
    """Return a choice as the study holds it."""
    return json.dumps(choice) if isinstance(choice, list | tuple | dict) else choice
