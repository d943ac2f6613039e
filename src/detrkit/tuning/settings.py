"""Settings that all trials of a study have in common; kept in it, so that a restart cannot change them unseen."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from detrkit.config import Config, update_config
from detrkit.tuning.space import Dimension, Space

Pruner = Literal["median", "hyperband", "none"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a study.

    Args:
        config: config of every trial, but for what is searched.
        space: search space.
        pruner: way in which hopeless trials are ended early.
        images: images and objects of the splits, by which a data set is known again.
    """

    config: Config
    space: Space
    pruner: Pruner
    images: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the values as the study holds them."""
        space = msgspec.to_builtins(self.space.dimensions)
        config = self.config.model_dump(mode="json")
        return {"config": config, "space": space, "pruner": self.pruner, "images": dict(self.images)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Read what :meth:`to_dict` gave; keys that an older detrkit did not know have their defaults."""
        config = update_config(Config(), values["config"])
        space = Space(msgspec.convert(values["space"], tuple[Dimension, ...]))
        return cls(config, space, values["pruner"], values["images"])

    def differences(self, other: Settings) -> list[str]:
        """Return what ``other`` has otherwise, in words."""
        found = []
        mine, theirs = _comparable(self.config), _comparable(other.config)
        for key in mine:
            if mine[key] != theirs.get(key):
                found.append(f"{key} is {mine[key]!r} in the study, {theirs.get(key)!r} now")
        ours, yours = (
            {part.name: msgspec.to_builtins(part) for part in of.space.dimensions} for of in (self, other)
        )
        for name in dict.fromkeys([*ours, *yours]):
            if ours.get(name) != yours.get(name):
                found.append(
                    f"the search of {name} is {_shown(ours.get(name))} in the study, {_shown(yours.get(name))} now"
                )
        if self.pruner != other.pruner:
            found.append(f"pruning is {self.pruner} in the study, {other.pruner} now")
        return found

    def different_data(self, images: Mapping[str, int]) -> list[str]:
        """Return what the data has otherwise than when the study was begun."""
        changed = {name: count for name, count in self.images.items() if images.get(name) != count}
        return [
            f"{name}: {count:,} when the study was begun, {images.get(name, 0):,} now"
            for name, count in changed.items()
        ]


def _comparable(config: Config) -> dict[str, Any]:
    """Return values by dotted key; paths as they are from anywhere."""
    sections = config.model_dump(mode="json")
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    for name in ("root", "train_annotations", "train_images", "val_annotations", "val_images"):
        key = f"data.{name}"
        if flat[key] is not None:
            flat[key] = os.fspath(Path(flat[key]).expanduser().resolve())
    return flat


def _shown(dimension: Mapping[str, Any] | None) -> str:
    if dimension is None:
        return "none"
    return ", ".join(f"{name} {value}" for name, value in dimension.items() if name not in ("key", "times"))
