"""Settings that all trials of a study have in common; kept in it, so that a restart cannot change them unseen."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from detrkit.config import Config, update_config
from detrkit.files import to_plain
from detrkit.tuning.space import Dimension, Space

Pruner = Literal["median", "hyperband", "none"]
_PATHS = [
    f"data.{name}" for name in ("root", "train_annotations", "train_images", "val_annotations", "val_images")
]


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
        space = to_plain(self.space.dimensions)
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
        mine, theirs = self._in_words(), other._in_words()
        return [
            f"{name} is {mine.get(name, 'none')} in the study, {theirs.get(name, 'none')} now"
            for name in {**mine, **theirs}
            if mine.get(name) != theirs.get(name)
        ]

    def _in_words(self) -> dict[str, str]:
        """Return every setting by its name; paths as they are from anywhere."""
        sections = self.config.model_dump(mode="json")
        found = {f"{name}.{key}": value for name, values in sections.items() for key, value in values.items()}
        for key in _PATHS:
            if found[key] is not None:
                found[key] = os.fspath(Path(found[key]).expanduser().resolve())
        words = {key: repr(value) for key, value in found.items()}
        for dimension in self.space.dimensions:
            fields = to_plain(dimension)
            told = [f"{name} {value}" for name, value in fields.items() if name not in ("key", "times")]
            words[f"the search of {dimension.name}"] = ", ".join(told)
        counts = {f"the number of {name}": f"{count:,}" for name, count in self.images.items()}
        return {**words, "pruning": self.pruner, **counts}
