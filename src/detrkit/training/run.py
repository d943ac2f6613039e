"""Training runs begun and gone on with, each in its folder: the one place where a training is put together."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric

from detrkit.checkpoint import CheckpointStore
from detrkit.classes import ClassMap
from detrkit.config import Config, DataConfig, flat_changes, read_config, update_config, write_config
from detrkit.data.augment import augments_on_device
from detrkit.data.cache import ImageCache, find_cache
from detrkit.data.coco import CocoDataset
from detrkit.data.loader import EpochBatchSampler, build_loader
from detrkit.data.pixel_range import measured_range, some_files
from detrkit.data.split import (
    Split,
    crowded_images,
    missing_objects,
    read_split,
    read_train_split,
    unknown_classes,
)
from detrkit.data.transforms import close_epoch, needed_size, train_transform
from detrkit.detectors.split_evaluator import Draw, SplitEvaluator
from detrkit.distributed import (
    ProcessGroup,
    check_same_state,
    is_restarted,
    leave_processes,
    lost_processes,
    make_fabric,
)
from detrkit.errors import CheckpointError, ConfigError, DataError, UsageError, listed
from detrkit.families.build import build_model, is_run, prepare_model
from detrkit.families.presets import PRESETS
from detrkit.files import LOCK, atomic_file, is_free, is_leftover, make_folder, results_folder, sole_writer
from detrkit.ops.images import narrow_range_lines
from detrkit.training.ema import warm_decay
from detrkit.training.loop import FitResult, fit
from detrkit.training.micro_batch import find_micro_batch
from detrkit.training.optim import count_warmup
from detrkit.training.resuming import (
    absolute_paths,
    check_own_files,
    check_same_data,
    choices_kept,
    identify_data,
    resumed_config,
)
from detrkit.training.session import OnEvaluation, Progress, TrainingSetup
from detrkit.training.telemetry.trackers import check_trackers

Say = Callable[[str], None]


class Drawings(NamedTuple):
    """Functions that draw for a run; a training without them draws nothing.

    Args:
        curves: Draws a metrics log, the first path, as a picture.
        detections: Draws detections of a class map on an image, uint8 ``[H, W, 3]``.
    """

    curves: Callable[[Path, Path], object]
    detections: Draw


def start_run(
    config: Config,
    run_dir: Path,
    say: Say,
    *,
    drawings: Drawings | None = None,
    on_evaluation: OnEvaluation | None = None,
    go_on: bool = False,
    asked: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train from a config in a new run folder.

    Args:
        config: Config of the training.
        run_dir: Run folder; made if it is not there.
        say: Receives messages for people.
        drawings: Functions that draw curves and samples.
        on_evaluation: As for :func:`detrkit.training.loop.fit`.
        go_on: If the folder holds a run already, go on with that one and its own config.
        asked: Values that were named for the config; what of them differs from such a run is changed in it.

    Raises:
        UsageError: The folder holds something already, or is none.
        DetrkitError: Anything that data, weights or training have to complain about.
    """
    if run_dir.is_dir() and not all(is_leftover(path) or path.name == LOCK for path in run_dir.iterdir()):
        # torchrun starts a failed training again, by the very same command
        go_on = go_on or is_restarted()
        if go_on and (run_dir / "config.yaml").is_file():
            changes = choices_kept(asked or {})
            return resume_run(run_dir, say, changes, drawings=drawings, on_evaluation=on_evaluation)
        advice = f", or go on with: detrkit resume {run_dir}" if is_run(run_dir) else ""
        raise UsageError(f"{run_dir} is not empty; give another --run{advice}")
    check_trackers(config.train.trackers)
    with results_folder(run_dir):  # a training that cannot begin leaves none
        return _train(config, run_dir, say, drawings, on_evaluation)


def resume_run(
    run_dir: Path,
    say: Say,
    changes: Mapping[str, Any] | None = None,
    *,
    drawings: Drawings | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> FitResult:
    """Go on with a run from its last checkpoint; one that was stopped before its first begins anew.

    The checkpoint's config counts, and ``config.yaml`` is its printout; a run without any checkpoint begins from
    that file.

    Args:
        run_dir: Run folder.
        say: Receives messages for people.
        changes: Changes of the config to go on with, dotted; see :func:`detrkit.training.resuming.resumed_config`.
        drawings: Functions that draw curves and samples.
        on_evaluation: As for :func:`detrkit.training.loop.fit`.

    Raises:
        UsageError: The folder is no run, or a value cannot be changed any more.
        CheckpointError: Every checkpoint is damaged.
    """
    store = CheckpointStore(run_dir)
    printout = run_dir / "config.yaml"
    if not (store.has_any() or printout.is_file()):
        raise UsageError(
            f"{run_dir} is not a run folder: it has no config.yaml. Runs lie in runs/ unless told otherwise"
        )
    check_own_files(run_dir, begins_anew=not store.has_any())
    if not store.has_any():
        say(f"{run_dir} was stopped before its first checkpoint: it begins anew")
        config, lines = resumed_config(read_config(printout), changes or {})
        for line in lines:
            say(line)
        return _train(config, run_dir, say, drawings, on_evaluation)
    saved = store.load_latest()
    missing = [key for key in ("config", "class_map", "model", "optimizer", "progress") if key not in saved]
    if missing:
        lacks = ", ".join(missing)
        raise CheckpointError(f"{store.folder} cannot be gone on from: its newest checkpoint lacks {lacks}")
    config = update_config(Config(), saved["config"])
    for line in _edited_lines(printout, config):
        say(line)
    config, lines = resumed_config(config, changes or {})
    done = Progress.of(saved)
    if done.epoch < config.train.epochs:
        for line in lines:
            say(line)
        if any(line.startswith("changed: train.micro_batch") for line in lines):
            saved["progress"]["micro_batch"] = None  # what was found to fit no longer counts
        return _train(config, run_dir, say, drawings, on_evaluation, saved)
    asked = f"{done.epoch} epochs are done, {config.train.epochs} were asked for"
    nothing = "; nothing is trained, and nothing was changed" if lines else ""
    say(f"{run_dir}: {asked}{nothing}; to train longer, give a new total with --epochs")
    if os.environ.get("RANK", "0") == "0":  # it may have been killed after its last checkpoint
        with sole_writer(run_dir):
            store.tidy_up()
            _draw_curves(run_dir, drawings, say)
    return FitResult(run_dir, done.step, done.epoch, done.best, done.metrics, "finished")


def _edited_lines(printout: Path, config: Config) -> list[str]:
    """Tell which keys of a run's config.yaml differ from the config of its checkpoint."""
    if not printout.is_file():
        return []
    try:
        written = flat_changes(read_config(printout).model_dump())
    except ConfigError as error:
        return [f"WARNING: {error}; the config in the checkpoint counts"]
    found = [
        f"{key} is {written[key]} there and {value} in the checkpoint"
        for key, value in flat_changes(config.model_dump()).items()
        if written[key] != value
    ]
    if not found:
        return []
    return [
        f"WARNING: {printout} was changed: {'; '.join(found)}. The checkpoint counts; to go on with "
        "other values: detrkit resume RUN --set KEY=VALUE"
    ]


def _train(
    config: Config,
    run_dir: Path,
    say: Say,
    drawings: Drawings | None,
    on_evaluation: OnEvaluation | None,
    saved: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train in a run folder, from the start or from a saved state."""
    # the other processes, which look at the folder too: it is still empty if it is to be
    make_folder(run_dir)
    fabric = make_fabric(config.train)
    if saved is not None:
        check_same_state(fabric, saved)
    with sole_writer(run_dir) if fabric.is_global_zero else contextlib.nullcontext():
        return _train_in(run_dir, fabric, config, say, drawings, on_evaluation, saved)


def _train_in(
    run_dir: Path,
    fabric: Fabric,
    config: Config,
    say: Say,
    drawings: Drawings | None,
    on_evaluation: OnEvaluation | None,
    saved: Mapping[str, Any] | None,
) -> FitResult:
    """Train in a run folder that no other process writes into."""
    first = fabric.is_global_zero
    say = say if first else _say_nothing

    # data, then the model, whose head and weights depend on it
    train = read_train_split(config)
    masks = config.model.masks
    val = read_split(config, config.data.val_split, strict=True, masks=masks, stuff=masks)
    for line in dict.fromkeys([*train.lines(), *val.lines()]):
        say(line)
    for line in _split_warnings(config, train, val):
        say(line)
    setup = prepare(config, fabric, train, say, saved)
    report = setup.built.report
    lines = scratch_warning(setup.config, len(train.index)) if report is None else report.lines()
    if saved is None:
        for line in [*lines, *unknown_classes(setup.class_map, val)]:
            say(line)
    if setup.config.train.micro_batch == "auto":
        fits = find_micro_batch(setup, train.index, fabric, say)
        say(str(fits))
        setup = setup.with_config(update_config(setup.config, {"train.micro_batch": fits.images}))

    for line in counted_lines(setup.config, setup.total_steps):
        say(line)

    # what people read in the run folder
    if first and saved is None:
        write_config(setup.config, run_dir / "config.yaml", own_folder=True)
        with atomic_file(run_dir / "classes.json", own_folder=True) as file:
            file.write(json.dumps(setup.class_map.to_dict(), indent=1) + "\n")
        with atomic_file(run_dir / "weights.txt", own_folder=True) as file:
            file.write("\n".join(lines) + "\n")

    evaluator = SplitEvaluator(
        setup.built,
        val,
        fabric.device,
        precision=setup.config.train.precision,
        processes=ProcessGroup() if fabric.world_size > 1 else None,
    )

    draw_samples = None
    if drawings is not None and setup.config.train.log_images:
        count = setup.config.train.log_images
        draw_samples = functools.partial(evaluator.draw_samples, count=count, draw=drawings.detections)

    with lost_processes():
        result = fit(
            setup,
            run_dir,
            fabric,
            evaluator.measure,
            draw_samples=draw_samples,
            on_evaluation=on_evaluation,
            resume=saved,
        )
        if first:
            _draw_curves(run_dir, drawings, say)
        leave_processes(fabric)
    return result


def prepare(
    config: Config, fabric: Fabric, train: Split, say: Say, saved: Mapping[str, Any] | None = None
) -> TrainingSetup:
    """Build all that a training begins or goes on with.

    Args:
        config: Config as asked for, or that of the saved state.
        fabric: Devices and precision.
        train: Training split.
        say: Receives messages for people.
        saved: State to go on from, which has the weights; starting weights are read if there is none.

    Raises:
        WeightsError: The starting weights cannot be had.
        DataError: The data has other classes than the run was begun with.
    """
    # the model: with starting weights, or with those of the saved state to come
    if saved is None:
        with fabric.rank_zero_first(local=True):  # one process of a machine fetches the weights
            built = prepare_model(config, train.index.class_map)
        config = built.config
    else:
        class_map = ClassMap.from_dict(saved["class_map"])
        if train.index.class_map.names != class_map.names:
            raise DataError(
                f"{train.files.annotations} has other classes than the run was begun with: got "
                f"{listed(train.index.class_map.names)}, expected {listed(class_map.names)}"
            )
        check_same_data(saved.get("data", {}), train)
        torch.manual_seed(config.train.seed)
        built = build_model(config, class_map)

    # gray values of the whole set, which the model is to meet again wherever it predicts
    if config.data.pixel_range == "data":
        config = update_config(
            config, {"data.pixel_range": measured_range("data", train.index, train.files.images)}
        )
        say(f"data.pixel_range of {train.files.images}: {config.data.pixel_range}")
    files = some_files(train.index, train.files.images, 3)
    for line in narrow_range_lines(files, config.data.pixel_range):
        say(f"WARNING: {line}")

    # paths that hold anywhere, and the one cache that a resumed run, too, shall read
    needed = needed_size(config.transforms)
    cache, found = find_cache(config.data, config.data.train_split, train.index, train.files.images, needed)
    for line in found:
        say(line)
    config = absolute_paths(config)
    config = update_config(config, {"data.cache": "none" if cache is None else str(cache.folder)})

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
    if not loader.num_workers and config.data.prefetch != DataConfig().prefetch:
        say("WARNING: data.prefetch has no effect without workers to keep batches ready (data.workers is 0)")
    criterion = built.family.build_criterion(config, built.class_map)
    return TrainingSetup(dataclasses.replace(built, config=config), criterion, loader, identify_data(train))


def training_dataset(config: Config, train: Split, cache: ImageCache | None, device: str) -> CocoDataset:
    """Return the training images as the loop gets them, for a device such as ``cpu`` or ``cuda``."""
    on_device = augments_on_device(config.transforms, device)
    return CocoDataset(
        train.index,
        train.files.images,
        train_transform(config.transforms, config.train.epochs, on_device=on_device),
        seed=config.train.seed,
        on_bad_image=config.data.on_bad_image,
        decode_target=needed_size(config.transforms),
        fast_decode=config.data.fast_decode,
        cache=cache,
        pixel_range=measured_range(config.data.pixel_range, train.index, train.files.images),
        masks=config.model.masks,
    )


def _split_warnings(config: Config, train: Split, val: Split) -> list[str]:
    """Tell what will be missing in training or in its numbers because of how the splits are."""
    lines = []
    if (train.files.annotations, train.files.listings) == (val.files.annotations, val.files.listings):
        lines.append("WARNING: the validation split is the training split; its AP says nothing about new images")
    patience = "" if config.train.patience is None else ", and train.patience does not act"
    best = f", best.pt is the state of the last evaluation{patience}"
    return [
        *lines,
        *(line + best for line in missing_objects(val)),
        *crowded_images(train, config.model.num_queries),
    ]


def scratch_warning(config: Config, images: int) -> list[str]:
    """Tell a person who trains without pretrained weights what that means."""
    preset = PRESETS.get(config.model.preset)
    if preset is not None and preset.published is None and preset.backbone_file is None:
        return [f"{config.model.preset} starts from random weights, as it is meant to"]
    passes = config.train.epochs * images
    return [
        "WARNING: the model starts from RANDOM weights, backbone included.",
        "  DETR learns slowly from nothing: the authors trained 300 to 500 epochs on COCO's 118,000 images with "
        "an ImageNet backbone.",
        f"  This run sees {passes:,} images in all; below some millions expect an AP near 0.",
        "  To fine-tune instead: --init published (COCO weights), --init backbone (ImageNet) or --init PATH.",
    ]


def counted_lines(config: Config, total_steps: int) -> list[str]:
    """Tell what is counted by the steps of a training: published counts are meant for COCO's."""
    train, transforms = config.train, config.transforms
    images = train.batch_size * train.accumulate * train.devices * train.num_nodes
    facts = [f"{total_steps:,} steps of {images} images in {train.epochs} epochs"]
    if train.warmup_steps:
        warmup = count_warmup(total_steps, train)
        cut = f" instead of {train.warmup_steps:,}" if warmup < train.warmup_steps else ""
        facts.append(f"warm-up: the first {warmup:,}{cut}")
    if train.ema_decay is not None:
        kept = 1 / (1 - warm_decay(train.ema_decay, total_steps))
        facts.append(f"weights are averaged over about the last {min(round(kept), total_steps):,}")
    last = close_epoch(transforms, train.epochs)
    if last is not None:
        facts.append(f"mosaic, mixup and zoom-out: in the first {last} epochs")
    lines = ["; ".join(facts)]
    least, most = min(transforms.scales), max(transforms.scales)
    if transforms.multi_scale and not least <= transforms.eval_size <= most:
        lines.append(
            f"WARNING: images are trained at sides of {least} to {most} pixels, but evaluated at "
            f"{transforms.eval_size}; set transforms.scales around transforms.eval_size"
        )
    return lines


def _draw_curves(run_dir: Path, drawings: Drawings | None, say: Say) -> None:
    """Draw ``curves.png``, unless it shows all there is."""
    log, picture = run_dir / "metrics.jsonl", run_dir / "curves.png"
    if drawings is not None and log.exists() and not is_free(picture):
        say(f"WARNING: {picture} is not as this version wrote it, and stays; for curves: detrkit plot {run_dir}")
        return
    is_fresh = picture.exists() and log.exists() and picture.stat().st_mtime_ns > log.stat().st_mtime_ns
    if drawings is not None and log.exists() and not is_fresh:
        drawings.curves(log, picture)


def _say_nothing(_message: str) -> None:
    """Drop what all processes but the first have to say."""
