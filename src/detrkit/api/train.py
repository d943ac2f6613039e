"""``detrkit.train``: begin a training, on this machine, under torchrun or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from detrkit.api.common import Source, with_arguments
from detrkit.config import DEFAULT_PRESET, RunRecipe, flat_changes, read_changes
from detrkit.errors import UsageError
from detrkit.families.build import is_run
from detrkit.families.recipes import resolve_config
from detrkit.training.loop import FitResult
from detrkit.training.run import Drawings, Say, start_run


def train(
    model: str | None = None,
    data: Source | None = None,
    *,
    run: Source | None = None,
    config: str | Path | None = None,
    init: Source | None = None,
    epochs: int | None = None,
    batch_size: int | Literal["auto"] | None = None,
    lr: float | None = None,
    recipe: RunRecipe | None = None,
    changes: Mapping[str, Any] | None = None,
    go_on: bool = False,
    ray_workers: int | None = None,
    drawings: Drawings | None = None,
    say: Say = print,
) -> FitResult:
    """Train on a data set and return the run, which every other verb takes as a model.

    Args:
        model: Preset to train; ``detr-r50`` if not given.
        data: Folder of the data set, in any layout that is read.
        run: Folder for the run; ``runs/MODEL-1`` and so on if not given.
        config: YAML file over the preset; the arguments here go over both.
        init: Starting weights: ``published``, ``backbone``, ``none``, a path or a hub id.
        epochs: Passes over the training images.
        batch_size: Images a batch and process; ``auto``: as configured, through memory in the largest pieces that
            fit, which changes no gradient.
        lr: Learning rate of everything but the backbone.
        recipe: How to train: ``plain`` as published, ``fast`` to learn from scratch and from little data, ``deim``
            as DEIM over either; ``auto`` (the default) is ``fast`` where training starts without pretrained
            weights.
        changes: Any other config values, dotted: ``{"train.ema_decay": 0.999}``.
        go_on: If the run folder holds a training already, go on with that one; arguments that differ from it are
            taken as by :func:`resume`.
        ray_workers: Train on a Ray cluster, with so many processes; see :mod:`detrkit.training.ray`.
        drawings: Functions that draw curves.png and sample detections during the training; ``detrkit plot`` draws
            the curves of any run afterwards.
        say: Where messages for people go.

    Raises:
        DetrkitError: Anything that config, data, weights or training have to complain about.
    """
    given = {
        "data.root": data,
        "train.init": init,
        "train.epochs": epochs,
        "train.batch_size": None if batch_size == "auto" else batch_size,
        "train.micro_batch": "auto" if batch_size == "auto" else None,
        "train.lr": lr,
        "train.recipe": recipe,
    }
    changes = with_arguments(changes, given)
    resolved = resolve_config(model or DEFAULT_PRESET, config, changes)
    run_dir = Path(run) if run is not None else _next_run(resolved.model.preset)
    if resolved.data.root is None and resolved.data.train_annotations is None and not (go_on and is_run(run_dir)):
        raise UsageError(
            "no data given; give the folder of a data set (--data DATA), or set data.train_annotations and "
            "data.val_annotations"
        )
    # what is named, should the folder hold a run that this goes on with
    named = {} if config is None else flat_changes(read_changes(config))
    named |= {**flat_changes(changes), **with_arguments({}, {"model.preset": model})}
    if ray_workers is not None:
        from detrkit.training.ray import train_on_ray

        options: dict[str, Any] = {"drawings": drawings, "say": say, "go_on": go_on, "asked": named}
        return train_on_ray(resolved, run_dir, num_workers=ray_workers, **options)
    return start_run(resolved, run_dir, say, drawings=drawings, go_on=go_on, asked=named)


def _next_run(preset: str) -> Path:
    """Return the first folder without content; an empty one was made by the first process or a failed training."""
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise UsageError("torchrun --max-restarts needs a run to go on with: name its folder with --run DIR")
    number = 1
    while (run_dir := Path("runs") / f"{preset}-{number}").exists() and any(run_dir.iterdir()):
        number += 1
    return run_dir
