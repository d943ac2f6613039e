"""Types that the verbs share, and the config that arguments resolve to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from detrkit.errors import UsageError

Source = str | os.PathLike[str]
Say = Callable[[str], None]

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""


def with_arguments(changes: Mapping[str, Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes of a config, and over them the arguments that are given, paths as text.

    Raises:
        UsageError: A value is asked for in both, and not the same.
    """
    arguments = {
        key: os.fspath(value) if isinstance(value, os.PathLike) else value
        for key, value in given.items()
        if value is not None
    }
    changes = changes or {}
    for key in arguments.keys() & changes.keys():
        if arguments[key] != changes[key]:
            raise UsageError(f"{key} is asked for twice, as {changes[key]} and as {arguments[key]}; give one")
    return {**changes, **arguments}
