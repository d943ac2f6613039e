"""Training aids: parts with weights that exist in training only, all under one name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

_Value = TypeVar("_Value")

AIDS = "aids."
"""With what the names of their weights begin, in every family."""


def without_aids(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """The weights of the model that detects."""
    return {name: value for name, value in state.items() if not name.startswith(AIDS)}
