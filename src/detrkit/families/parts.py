"""The parts of a model by name: what can be frozen, or trained at a rate of its own.

A part inside another carries its name: ``backbone.stage1`` is inside ``backbone``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from torch import nn

from detrkit.checkpoint import AIDS
from detrkit.config import TrainConfig
from detrkit.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class PartRule:
    """How a part of a network is told by its parameters' names.

    Args:
        pattern: Of the names' beginnings; a group in it is the number of a layer or stage.
        part: Name of the part, with ``{}`` for that number.
        depth: Layers between the part and the detections; for numbered ones, those of number 0.
        first: Number of the first layer, for people, where the parameters' names count from 0.
    """

    pattern: str
    part: str
    depth: int = 0
    first: int = 0


def backbone_rules(stages: int, depth: int) -> tuple[PartRule, ...]:
    """Return the rules of a backbone of so many stages, whose last stage lies at a depth."""
    return (
        PartRule(r"backbone\.0\.body\.(?:conv1|bn1)\.", "backbone.stem", depth + stages),
        PartRule(r"backbone\.0\.body\.layer(\d+)\.", "backbone.stage{}", depth + stages),
    )


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a parameter lies in its model.

    Args:
        part: The innermost part.
        depth: Layers between it and the detections; 0 for the heads.
    """

    part: str
    depth: int


MASK_HEAD = "mask_head"
"""The part that makes masks."""

Places = Mapping[str, Place]
"""The place of every parameter, by its name."""


def find_places(model: nn.Module) -> Places:
    """Return the place of each parameter by the network's ``part_rules``; a part is its module if none matches.

    Depths are counted as BEiT counts them (arXiv:2106.08254, appendix): 0 for the heads, then layer by layer.
    """
    rules: tuple[PartRule, ...] = getattr(model, "part_rules", ())
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return {name: _find_place(name, rules) for name in names}


def _find_place(name: str, rules: Iterable[PartRule]) -> Place:
    for rule in rules:
        match = re.match(rule.pattern, name)
        if match:
            number = int(match.group(1)) if match.groups() else 0
            return Place(rule.part.format(number + rule.first), rule.depth - number)
    return Place(name.partition(".")[0], 0)


def is_inside(part: str, outer: str) -> bool:
    """Return whether a part is another or lies in it."""
    return part == outer or part.startswith(f"{outer}.")


def part_names(places: Places) -> tuple[str, ...]:
    """Return every part of a model, from the image to the detections; an outer part before what is in it."""
    order: dict[str, int] = {}
    for place in sorted(places.values(), key=lambda place: place.depth, reverse=True):
        for part in _outer_parts(place.part):
            order.setdefault(part, len(order))
    return tuple(sorted(order, key=lambda name: [order[part] for part in _outer_parts(name)]))


def _outer_parts(part: str) -> list[str]:
    """Return a part and those it lies in, the outermost first."""
    pieces = part.split(".")
    return [".".join(pieces[:end]) for end in range(1, len(pieces) + 1)]


def most_specific(part: str, choices: Iterable[str]) -> str | None:
    """Return the innermost of the named parts that a part lies in; None if it lies in none of them."""
    return max((outer for outer in choices if is_inside(part, outer)), key=len, default=None)


def check_parts(places: Places, config: TrainConfig, preset: str) -> None:
    """Check that all parts which a config names are parts of the model, and that something is left to train.

    Raises:
        ConfigError: One is not, and the nearest name is suggested; or everything is frozen.
    """
    known = part_names(places)
    for key, names in (("freeze", config.freeze), ("only", config.only), ("lr_scale", tuple(config.lr_scale))):
        for name in names:
            if name not in known:
                hint = f"{nearest(name, known)} Parts: {', '.join(known)}"
                raise ConfigError(f"train.{key} names {name!r}, which is no part of {preset}; {hint}")
    own = [place.part for name, place in places.items() if not name.startswith(AIDS)]
    if all(_is_frozen(part, config) for part in own):
        only = f" and train.only {', '.join(config.only)}" if config.only else ""
        frozen = f"train.freeze is {', '.join(config.freeze)}{only}"
        raise ConfigError(f"{frozen}: nothing is left to train. Parts: {', '.join(known)}")


def freeze_parts(model: nn.Module, places: Places, config: TrainConfig) -> None:
    """Let what ``train.freeze`` and ``train.only`` say want no gradients; what was frozen already stays so."""
    for name, parameter in model.named_parameters():
        if _is_frozen(places[name].part, config):
            parameter.requires_grad_(False)


def _is_frozen(part: str, config: TrainConfig) -> bool:
    others = bool(config.only) and not most_specific(part, config.only)
    return others or most_specific(part, config.freeze) is not None
