"""Types that the verbs share, and the config that arguments resolve to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detrkit.config import Config
from detrkit.families.recipes import resolve_config

Source = str | os.PathLike[str]
Say = Callable[[str], None]

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""


def resolved_config(
    model: str, config: str | Path | None, changes: Mapping[str, Any] | None, given: Mapping[str, Any]
) -> Config:
    """Return the preset with its recipe, the file over it, then changes, then the arguments that are given."""
    arguments = {
        key: os.fspath(value) if isinstance(value, os.PathLike) else value
        for key, value in given.items()
        if value is not None
    }
    return resolve_config(model, config, {**(changes or {}), **arguments})
