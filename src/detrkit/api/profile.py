"""``detrkit.profile``: measure where a training step's time and memory go."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from detrkit.api.common import Say, Source, with_arguments
from detrkit.config import DEFAULT_PRESET, Config, read_config, update_config
from detrkit.data.split import read_train_split
from detrkit.distributed import make_fabric
from detrkit.errors import UsageError, counted
from detrkit.families.build import is_run
from detrkit.families.recipes import resolve_config
from detrkit.files import make_folder
from detrkit.hardware import PeakMemory
from detrkit.profiling.advice import advise, utilisation_of
from detrkit.profiling.measure import WARM_UP, measure_training
from detrkit.profiling.report import Profile, write_profile
from detrkit.training.run import prepare


def profile(
    model: Source | None = None,
    data: Source | None = None,
    *,
    config: str | Path | None = None,
    init: Source | None = None,
    changes: Mapping[str, Any] | None = None,
    steps: int = 10,
    out: Source = "profile",
    trace: bool = False,
    say: Say = print,
) -> Profile:
    """Measure where the time and memory of a training step go, and what to change; nothing is trained for good.

    Args:
        model: Preset, ``detr-r50`` if not given; or the folder of a run, whose config and data are then used.
        data: Folder of the data set, in any layout that is read.
        config: YAML file over the preset or the run's config.
        init: Starting weights, as for :func:`detrkit.train`; speed hardly depends on them.
        changes: Any other config values, dotted.
        steps: Number of steps to take the median of.
        out: Folder for ``profile.json`` and ``profile.html``.
        trace: Also write ``trace.json``, for chrome://tracing or https://ui.perfetto.dev.
        say: Receives messages for people.

    Raises:
        UsageError: Something is asked wrongly.
        DataError: The data has no readable image.
    """
    if steps < 1:
        raise UsageError(f"steps is {steps}, expected at least 1")
    resolved = _resolve(model, data, config, init, changes)
    if resolved.data.root is None and resolved.data.train_annotations is None:
        raise UsageError("no data given; give the folder of a data set: --data DATA")

    # the training as it would begin
    train = read_train_split(resolved)
    folder = make_folder(out, "profile.json", "profile.html", *(["trace.json"] if trace else []))
    for line in train.lines():
        say(line)
    fabric = make_fabric(resolved.train)
    at_rest = PeakMemory(fabric.device).now()
    setup = prepare(resolved, fabric, train, say)

    # some steps of it
    say(f"watching {steps} steps after {WARM_UP} to warm up")
    traced = folder / "trace.json" if trace else None
    measured = measure_training(setup, fabric, steps=steps, at_rest=at_rest, trace=traced)
    advice, utilisation = advise(setup.config, measured), utilisation_of(setup.config, measured)
    found = Profile(setup.config, measured, advice, _device_name(measured.device), utilisation, folder)
    write_profile(found)
    return found


def _resolve(
    model: Source | None,
    data: Source | None,
    config: str | Path | None,
    init: Source | None,
    changes: Mapping[str, Any] | None,
) -> Config:
    """Return the config to train with, on one process."""
    name = DEFAULT_PRESET if model is None else os.fspath(model)
    if (Path(name) / "config.yaml").is_file():
        base = read_config(Path(name) / "config.yaml")
        base = read_config(config, base) if config is not None else base
    elif Path(name).is_dir() and is_run(name):
        raise UsageError(f"{name} has no config.yaml; name the preset instead: --model PRESET --data DATA")
    else:
        base = None
    given = {"data.root": data, "train.init": init, "train.devices": 1, "train.num_nodes": 1}
    asked = with_arguments(changes, given)
    return resolve_config(name, config, asked) if base is None else update_config(base, asked)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"the CPU with {counted(torch.get_num_threads(), 'thread')}"
