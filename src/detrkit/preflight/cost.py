"""What the training will take: seconds a step and an epoch, memory, and whether loading keeps up."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time

import torch

from detrkit.config import Config
from detrkit.data.coco import CocoDataset
from detrkit.data.loader import EpochBatchSampler, auto_workers, collate
from detrkit.detectors.cost import count_kept
from detrkit.errors import DataError
from detrkit.families.family import BuiltModel
from detrkit.families.parts import find_places
from detrkit.hardware import PeakMemory
from detrkit.preflight.report import CheckResult, Outcome, bad
from detrkit.training.forward_backward import Passes, single_passes, single_step
from detrkit.training.optim import build_optimizer
from detrkit.training.telemetry.log import memory_gib
from detrkit.types import Batch

_STEPS = 2
_SLOW_STEP_S = 5.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """Measured on the first real batches.

    Args:
        step_s: Seconds of a step, its forward, backward and optimiser.
        load_s: Seconds that one process takes to load a batch.
        memory_gib: Of the device, or of this process; about what a whole batch takes.
        limit_gib: Memory that there is.
        batch: The last batch, as the model gets it.
    """

    step_s: float
    load_s: float
    memory_gib: float
    limit_gib: float
    batch: Batch


def measure_cost(built: BuiltModel, dataset: CocoDataset, device: torch.device) -> Cost:
    """Time a few steps at full resolution on batches as training will see them; the model is changed.

    Raises:
        DataError: No batch can be loaded.
        torch.OutOfMemoryError: The device is too small.
    """
    config, model, train = built.config, built.model, built.config.train
    sampler = EpochBatchSampler(len(dataset), train.batch_size, seed=train.seed)
    sampler.set_epoch(0)
    criterion = built.family.build_criterion(config, built.class_map)
    passes = single_passes(config, model, criterion, device, train.precision)
    optimizer = build_optimizer(model, train, find_places(model))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step_times: list[float] = []
    load_times: list[float] = []
    kept_gib: list[float] = []
    whole: Batch | None = None
    for keys in sampler:
        started = time.monotonic()
        samples = [sample for key in keys if (sample := dataset[key]) is not None]
        if not samples:
            continue
        whole = collate(samples)
        load_times.append(time.monotonic() - started)
        # On a slow device two images stand for all, padded as a batch is.
        few = device.type != "cuda" and (not step_times or step_times[0] > _SLOW_STEP_S)
        part = collate(samples[: 1 + len(step_times)]) if few else whole
        assert part is not None
        started = time.monotonic()
        kept = _step(passes, optimizer, part, len(step_times))
        share = len(samples) / len(part.sizes_hw)
        step_times.append((time.monotonic() - started) * share)
        kept_gib.append(kept * share / 2**30)
        if len(step_times) == _STEPS:  # the first one is slow: memory is new, kernels are chosen
            break
    if whole is None:
        raise DataError("no image of the training split can be read; run: detrkit data check")
    # On a CPU: what the process holds now, optimiser included, and what the backward of a whole batch needs.
    used = memory_gib(device) + (0.0 if device.type == "cuda" else max(kept_gib))
    return Cost(step_times[-1], min(load_times), used, PeakMemory(device).limit() / 2**30, whole)


def _step(passes: Passes, optimizer: torch.optim.AdamW, batch: Batch, step: int) -> int:
    """Run one step of training and wait for it; returns the bytes that the forward keeps for the backward."""
    kept: dict[str, int] = {}

    def count(phase: str) -> contextlib.AbstractContextManager[object]:
        counting = count_kept(passes.model, kept, lambda: phase)
        return counting if phase == "forward" else contextlib.nullcontext()

    single_step(dataclasses.replace(passes, phase=count), optimizer, [batch], step)
    return sum(kept.values())


def check_cost(config: Config, cost: Cost, train_images: int, val_images: int) -> list[CheckResult]:
    """Check time per epoch and memory."""
    train = config.train
    processes = train.devices * train.num_nodes
    batches = math.ceil(train_images / (train.batch_size * processes))
    workers = auto_workers() if config.data.workers == "auto" else config.data.workers
    waiting = cost.load_s / max(workers, 1)
    pace = max(cost.step_s, waiting) if workers else cost.step_s + cost.load_s
    evaluation_s = val_images / train.batch_size * cost.step_s / 3 / train.eval_every
    epoch_s = batches * pace + evaluation_s
    figures = {
        "step_s": cost.step_s,
        "load_s": cost.load_s,
        "epoch_s": epoch_s,
        "training_s": epoch_s * train.epochs,
        "memory_gib": cost.memory_gib,
    }
    height, width = cost.batch.images.shape[2:]
    found = (
        f"about {_duration(epoch_s)} an epoch, {_duration(epoch_s * train.epochs)} in all: {batches:,} batches of "
        f"{train.batch_size} at {cost.step_s:.2f} s (measured at {height} x {width}), {train.epochs} epochs"
    )
    results = [CheckResult("time", Outcome.NOTE, found, figures=figures)]
    memory = f"about {cost.memory_gib:.1f} of {cost.limit_gib:.0f} GiB; the largest images take more"
    tight = cost.memory_gib > 0.8 * cost.limit_gib
    advice = "lower train.batch_size and raise train.accumulate" if tight else ""
    results.append(CheckResult("memory", Outcome.WARNING if tight else Outcome.NOTE, memory, advice, figures))
    if waiting > cost.step_s:
        times = f"a batch takes {cost.load_s:.2f} s to load and {cost.step_s:.2f} s to train on"
        results.append(bad("loading_too_slow", f"{times}, with {workers} workers", figures, fault=False))
    return results


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
