"""What all trials of a study have in common; kept in the study, so that a restart cannot change it unseen."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from detrkit.config import Config, update_config
from detrkit.tuning.space import Space

Pruner = Literal["median", "hyperband", "none"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a study.

    Args:
        config: Of every trial, but for what is searched.
        space: What is searched.
        pruner: How hopeless trials are ended early.
        images: Images and objects of the splits, by which a data set is known again.
    """

    config: Config
    space: Space
    pruner: Pruner
    images: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As the study holds it."""
        return {
            "config": self.config.model_dump(mode="json"),
            "space": self.space.to_list(),
            "pruner": self.pruner,
            "images": dict(self.images),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """What :meth:`to_dict` came from; keys that an older detrkit did not know have their defaults."""
        config = update_config(Config(), values["config"])
        return cls(config, Space.from_list(values["space"]), values["pruner"], values["images"])

    def differences(self, other: Settings) -> list[str]:
        """What ``other`` has otherwise, in words."""
        found = []
        mine, theirs = _comparable(self.config), _comparable(other.config)
        for key in mine:
            if mine[key] != theirs.get(key):
                found.append(f"{key} is {mine[key]!r} in the study, {theirs.get(key)!r} now")
        ours = {part.name: part.to_dict() for part in self.space.dimensions}
        yours = {part.name: part.to_dict() for part in other.space.dimensions}
        for name in dict.fromkeys([*ours, *yours]):
            if ours.get(name) != yours.get(name):
                found.append(
                    f"the search of {name} is {_shown(ours.get(name))} in the study, {_shown(yours.get(name))} now"
                )
        if self.pruner != other.pruner:
            found.append(f"pruning is {self.pruner} in the study, {other.pruner} now")
        return found

    def different_data(self, images: Mapping[str, int]) -> list[str]:
        """What the data has otherwise than when the study was begun."""
        changed = {name: count for name, count in self.images.items() if images.get(name) != count}
        return [
            f"{name}: {count:,} when the study was begun, {images.get(name, 0):,} now"
            for name, count in changed.items()
        ]


def _comparable(config: Config) -> dict[str, Any]:
    """Values by dotted key; paths as they are from anywhere."""
    sections = config.model_dump(mode="json")
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    for key in (
        "data.root",
        "data.train_annotations",
        "data.train_images",
        "data.val_annotations",
        "data.val_images",
    ):
        if flat[key] is not None:
            flat[key] = os.fspath(Path(flat[key]).expanduser().resolve())
    return flat


def _shown(dimension: Mapping[str, Any] | None) -> str:
    if dimension is None:
        return "none"
    return ", ".join(f"{name} {value}" for name, value in dimension.items() if name not in ("key", "times"))
