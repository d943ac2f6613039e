"""What a file says of its model besides the tensors, and the ``args`` in which the authors' script says it.

What the script has no argument for, a file of detrkit holds under the name that it has in a config, such as
``model.activation``.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.errors import WeightsError
from detrkit.files import read_facts

ARGUMENTS: Mapping[str, str] = read_facts(__file__)
"""Arguments of the authors' script, and the keys of a config that they are."""

_POSITIONS = {"v2": "sine", "v3": "learned"}


@dataclasses.dataclass(frozen=True)
class Told:
    """What a file says of its model besides the tensors.

    Args:
        by: Where it says so, such as ``args``.
        settings: Values by dotted key of a config.
        names: What the file calls those keys.
        labels: Names of the head's labels by number, if it has any.
        num_labels: Labels of the head, if it says.
        dataset: Name of the data set that it was trained on, if it says.
        notes: What people should know.
        stuff: Labels of what has no number, such as sky.
    """

    by: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: Mapping[int, str] = dataclasses.field(default_factory=dict)
    num_labels: int | None = None
    dataset: str | None = None
    notes: tuple[str, ...] = ()
    stuff: tuple[int, ...] = ()


def read_arguments(args: Any, path: Path) -> Told:
    """Return what the ``args`` of a file say.

    Raises:
        WeightsError: They are none.
    """
    values = vars(args) if isinstance(args, argparse.Namespace) else args
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds args of type {type(args).__name__}, expected argparse's, or a dict")
    names = {ARGUMENTS.get(str(name), str(name)): name for name, value in values.items() if value is not None}
    names = {key: name for key, name in names.items() if "." in key}
    settings = {key: values[name] for key, name in names.items()}
    if isinstance(position := settings.get("model.position"), str):
        settings["model.position"] = _POSITIONS.get(position, position)
    return Told("args", settings, names, num_labels=values.get("num_classes"), dataset=values.get("dataset_file"))
