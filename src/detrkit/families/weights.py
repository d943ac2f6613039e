"""Weights on their way into a model, and the report of what became of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detrkit.classes import ClassMap
from detrkit.config import ModelConfig
from detrkit.errors import listed


@dataclasses.dataclass(frozen=True)
class Weights:
    """A checkpoint that was read, under detrkit's own parameter names.

    Args:
        state: Tensors by name.
        config: The model they belong to.
        class_map: The classes of the head.
        source: Where they come from, to show to people.
        settings: What the file says besides the model, by dotted key of a config: preprocessing, loss weights.
        notes: What had to be assumed, for people.
    """

    state: dict[str, Tensor]
    config: ModelConfig
    class_map: ClassMap
    source: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every tensor when weights were loaded into a model.

    Args:
        source: Where the weights come from.
        loaded: Names in the model that got the checkpoint's values.
        replaced: Name to reason, for tensors of the model that start anew although the checkpoint has them.
        missing: Names in the model that the checkpoint does not have.
        left_over: Names in the checkpoint that the model does not have.
        carried: Classes whose rows of the head came along by name.
        new_classes: Classes whose rows start anew.
        notes: Anything else worth knowing.
    """

    source: str
    loaded: tuple[str, ...] = ()
    replaced: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    new_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Return whether every tensor found its place and nothing was left."""
        return not (self.replaced or self.missing or self.left_over)

    @property
    def new_tensors(self) -> frozenset[str]:
        """Names in the model that start anew."""
        return frozenset(self.replaced) | frozenset(self.missing)

    def lines(self) -> list[str]:
        """Return the report for people, a fact a line."""
        total = len(self.loaded) + len(self.replaced) + len(self.missing)
        lines = [f"weights from {self.source}: {len(self.loaded)} of {total} tensors loaded"]
        lines += [f"  replaced: {name} ({reason})" for name, reason in self.replaced.items()]
        if self.carried:
            lines.append(f"  classes carried over by name: {_some(self.carried)}")
        if self.new_classes:
            lines.append(f"  classes that start anew: {_some(self.new_classes)}")
        if self.missing:
            lines.append(f"  not in the checkpoint, start anew: {_some(self.missing)}")
        if self.left_over:
            lines.append(f"  left over in the checkpoint: {_some(self.left_over)}")
        return lines + [f"  {note}" for note in self.notes]


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({listed(names, 6)})"
