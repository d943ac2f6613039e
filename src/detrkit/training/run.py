"""Training runs begun and gone on with, each in its folder."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from detrkit.checkpoint import CheckpointStore
from detrkit.classes import ClassMap
from detrkit.config import Config, read_config, update_config, write_config
from detrkit.data.cache import ImageCache, find_cache
from detrkit.data.loader import EpochBatchSampler, build_loader
from detrkit.data.split import Split, read_split, unknown_classes
from detrkit.data.transforms import needed_size
from detrkit.detectors.on_split import SplitEvaluator
from detrkit.distributed import (
    Peers,
    check_same_state,
    is_restarted,
    leave_processes,
    lost_peers,
    make_fabric,
)
from detrkit.errors import DataError, UsageError
from detrkit.families.build import build_model, is_run, prepare_model
from detrkit.families.family import BuiltModel
from detrkit.files import atomic_file, is_leftover, make_folder
from detrkit.training.loop import FitResult, fit
from detrkit.training.micro_batch import find_micro_batch
from detrkit.training.prepare import scratch_warning, training_dataset
from detrkit.training.session import OnEvaluation
from detrkit.training.state import Progress
from detrkit.training.telemetry.trackers import check_trackers
from detrkit.visual.curves import plot_curves

Say = Callable[[str], None]


def start_run(
    config: Config,
    run_dir: Path,
    say: Say,
    *,
    on_evaluation: OnEvaluation | None = None,
    go_on: bool = False,
) -> FitResult:
    """Train from a config in a new run folder.

    Args:
        config: What to train.
        run_dir: The run folder; made if it is not there.
        say: Where messages for people go.
        on_evaluation: As for :func:`detrkit.training.loop.fit`.
        go_on: If the folder holds a run already, go on with that one and its own config.

    Raises:
        UsageError: The folder holds something already, or is none.
        DetrkitError: Anything that data, weights or training have to complain about.
    """
    if run_dir.is_dir() and not all(map(is_leftover, run_dir.iterdir())):
        # torchrun starts a failed training again, by the very same command
        go_on = go_on or is_restarted()
        if go_on and (run_dir / "config.yaml").is_file():
            return resume_run(run_dir, say, on_evaluation=on_evaluation)
        advice = f", or go on with: detrkit resume {run_dir}" if is_run(run_dir) else ""
        raise UsageError(f"{run_dir} is not empty; give another --run{advice}")
    check_trackers(config.train.trackers)
    return _begin_run(config, run_dir, say, on_evaluation)


def _begin_run(config: Config, run_dir: Path, say: Say, on_evaluation: OnEvaluation | None) -> FitResult:
    """Train from the start."""
    make_folder(run_dir)
    fabric = make_fabric(config.train)  # starts the other processes, which look at the folder too: still empty
    say = say if fabric.is_global_zero else _say_nothing
    train, val = _read_data(config, say)
    with fabric.rank_zero_first(local=True):  # one process of a machine fetches the weights
        prepared = prepare_model(config, train.index.class_map)
    config, class_map = prepared.config, prepared.class_map
    lines = scratch_warning(config, len(train.index)) if prepared.report is None else prepared.report.lines()
    for line in [*lines, *unknown_classes(class_map, val)]:
        say(line)
    config = _absolute_paths(config, train, val)
    cache = _find_cache(config, train, say)
    found = "none" if cache is None else str(cache.folder)  # a resumed run shall not find another
    config = config.model_copy(update={"data": config.data.model_copy(update={"cache": found})})
    if config.train.micro_batch == "auto":
        criterion = prepared.family.build_criterion(config, class_map)
        fits = find_micro_batch(config, prepared.model, criterion, train.index, fabric, say)
        say(str(fits))
        config = update_config(config, {"train.micro_batch": fits.images})
    if fabric.is_global_zero:
        write_config(config, run_dir / "config.yaml")
        with atomic_file(run_dir / "classes.json") as file:
            file.write(json.dumps(class_map.to_dict(), indent=1) + "\n")
        with atomic_file(run_dir / "weights.txt") as file:
            file.write("\n".join(lines) + "\n")
    return _fit(fabric, config, prepared, train, val, cache, run_dir, None, on_evaluation)


def resume_run(
    run_dir: Path,
    say: Say,
    changes: Callable[[Config], Config] = lambda config: config,
    *,
    on_evaluation: OnEvaluation | None = None,
) -> FitResult:
    """Go on with a run from its last checkpoint; one that was stopped before its first begins anew.

    Args:
        run_dir: The run folder.
        say: Where messages for people go.
        changes: Gives the config to go on with.
        on_evaluation: As for :func:`detrkit.training.loop.fit`.

    Raises:
        UsageError: The folder is no run.
        CheckpointError: Every checkpoint is damaged.
    """
    if not (run_dir / "config.yaml").is_file():
        raise UsageError(
            f"{run_dir} is not a run folder: it has no config.yaml. Runs lie in runs/ unless told otherwise"
        )
    saved_config = read_config(run_dir / "config.yaml")
    config = changes(saved_config)
    store = CheckpointStore(run_dir)
    if not store.has_any():
        say(f"{run_dir} was stopped before its first checkpoint: it begins anew")
        return _begin_run(config, run_dir, say, on_evaluation)
    payload = store.load_latest()
    done = Progress(**payload["progress"])
    if done.epoch >= config.train.epochs:
        asked = f"{done.epoch} epochs are done, {config.train.epochs} were asked for"
        say(f"{run_dir}: {asked}; to train longer, give a new total with --epochs")
        if os.environ.get("RANK", "0") == "0":  # it may have been killed after its last checkpoint
            store.tidy_up()
            _draw_curves(run_dir)
        return FitResult(run_dir, done.step, done.epoch, done.best, done.metrics, "finished")
    class_map = ClassMap.from_dict(payload["class_map"])
    fabric = make_fabric(config.train)
    check_same_state(fabric, payload)
    say = say if fabric.is_global_zero else _say_nothing
    train, val = _read_data(config, say)
    if train.index.class_map.names != class_map.names:
        raise DataError(
            f"{train.files.annotations} has other classes than the run was begun with; "
            f"got {len(train.index.class_map)}, expected {len(class_map)}: {', '.join(class_map.names[:5])}, ..."
        )
    torch.manual_seed(config.train.seed)
    built = build_model(config, class_map)
    if config != saved_config and fabric.is_global_zero:
        write_config(config, run_dir / "config.yaml")  # or the next resume would know nothing of it
    cache = _find_cache(config, train, say)
    return _fit(fabric, config, built, train, val, cache, run_dir, payload, on_evaluation)


def _read_data(config: Config, say: Say) -> tuple[Split, Split]:
    train = read_split(config, config.data.train_split)
    val = read_split(config, config.data.val_split, strict=True)
    for line in dict.fromkeys([*train.lines(), *val.lines()]):
        say(line)
    if (train.files.annotations, train.files.listings) == (val.files.annotations, val.files.listings):
        say("WARNING: the validation split is the training split; its AP says nothing about new images")
    return train, val


def _find_cache(config: Config, train: Split, say: Say) -> ImageCache | None:
    needed = needed_size(config.transforms)
    cache, lines = find_cache(config.data, config.data.train_split, train.index, train.files.images, needed)
    for line in lines:
        say(line)
    return cache


def _fit(
    fabric: Fabric,
    config: Config,
    built: BuiltModel,
    train: Split,
    val: Split,
    cache: ImageCache | None,
    run_dir: Path,
    resume: Mapping[str, Any] | None,
    on_evaluation: OnEvaluation | None,
) -> FitResult:
    dataset = training_dataset(config, train, cache, fabric.device.type)
    sampler = EpochBatchSampler(
        len(dataset),
        config.train.batch_size,
        seed=config.train.seed,
        shuffle=True,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        size_of=dataset.sample_size if config.data.buckets else None,
    )
    loader = build_loader(dataset, sampler, config.data, pin=fabric.device.type == "cuda")
    evaluator = SplitEvaluator(
        dataclasses.replace(built, config=config),
        val,
        fabric.device,
        precision=config.train.precision,
        peers=Peers() if fabric.world_size > 1 else None,
    )

    def draw_samples(network: nn.Module) -> Sequence[tuple[str, np.ndarray]]:
        return evaluator.draw_samples(network, config.train.log_images)

    with lost_peers():
        result = fit(
            config,
            built.model,
            built.family.build_criterion(config, built.class_map),
            loader,
            built.class_map,
            run_dir,
            evaluator.measure,
            draw_samples=draw_samples,
            on_evaluation=on_evaluation,
            new=() if built.report is None else built.report.new_tensors,
            resume=resume,
            fabric=fabric,
        )
        if fabric.is_global_zero:
            _draw_curves(run_dir)
        leave_processes(fabric)
    return result


def _draw_curves(run_dir: Path) -> None:
    """Draw ``curves.png``, unless it shows all there is."""
    log, picture = run_dir / "metrics.jsonl", run_dir / "curves.png"
    if log.exists() and not (picture.exists() and picture.stat().st_mtime_ns > log.stat().st_mtime_ns):
        plot_curves(log, picture)


def _absolute_paths(config: Config, train: Split, val: Split) -> Config:
    """The config with paths that hold from any working directory."""
    found = {
        "root": config.data.root,
        "train_annotations": train.files.annotations,
        "train_images": train.files.images,
        "val_annotations": val.files.annotations,
        "val_images": val.files.images,
    }
    given = {
        key: path for key, path in found.items() if path is not None and getattr(config.data, key) is not None
    }
    absolute = {key: str(Path(path).expanduser().resolve()) for key, path in given.items()}
    init = config.train.init
    if Path(init).expanduser().exists() and init not in ("auto", "none", "published", "backbone"):
        init = str(Path(init).expanduser().resolve())
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=absolute),
            "train": config.train.model_copy(update={"init": init}),
        }
    )


def _say_nothing(_message: str) -> None:
    """What all processes but the first have to say."""
