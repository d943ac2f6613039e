"""Steps whose loss or gradient is not finite: found without asking the device, saved so that they can be repeated.

A loss that is not finite makes every gradient NaN, and a gradient norm that is not finite lets the optimiser skip
the step, on the device and on all processes alike. The host learns of it one step later, where the matcher has
waited for the device anyway; no weight has changed in between, so weights and batch are still those of the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detrkit.errors import NonFiniteError
from detrkit.training.checkpoint import save_checkpoint
from detrkit.training.run import LastStep, Run
from detrkit.types import Batch

MOST_SAVED = 3
"""Bad steps of a run that are saved: each holds all weights."""

# Below this the float16 loss scale means that no step has had finite gradients for very long.
_LEAST_SCALE = 2.0**-14


def find_damage(batches: Sequence[Batch]) -> str:
    """What is wrong with boxes of batches on the host: the first not finite or without area; or nothing."""
    for batch in batches:
        boxes = batch.truth.boxes_cxcywh.numpy()
        sound = np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1)
        if sound.all():
            continue
        place = int(np.flatnonzero(~sound)[0])
        image = int(np.searchsorted(np.cumsum(batch.truth.counts), place, side="right"))
        numbers = ", ".join(f"{value:.4g}" for value in boxes[place])
        return f"image {batch.image_ids[image]} has a box cxcywh ({numbers}), expected finite numbers and an area"
    return ""


def note_step(run: Run, last: Mapping[str, Any], row: Tensor, scale: Tensor | None) -> None:
    """Remember a step until its values have reached the host.

    Args:
        run: The training.
        last: All fields of :class:`LastStep` but values and arrived.
        row: float32 ``[n]`` on the device.
        scale: Loss scale of the step on the device, if there is one.
    """
    values, arrived = _to_host(row if scale is None else torch.cat((row, scale.float().reshape(1))))
    run.last_step = LastStep(**last, values=values, arrived=arrived)


def settle(run: Run) -> None:
    """Look at the step before, before any weight changes; save it if it was bad."""
    last, run.last_step = run.last_step, None
    if last is None:
        return
    last.arrived()
    values = dict(zip(last.names, last.values.numpy().tolist(), strict=False))
    bad = not _is_finite(values["loss"]) or bool(last.damage)
    if not _is_finite(values["grad_norm"]):
        # with float16 an infinite gradient alone is the loss scale finding its level, unless it sank to nothing
        bad |= last.scale is None or last.scale < _LEAST_SCALE
    run.was_bad = bad
    if bad:
        _report(run, last, values)


def count_bad_step(run: Run, bad: bool | None) -> None:
    """Count the bad steps in a row, the same on all processes; stop if there are too many.

    Args:
        run: The training.
        bad: Whether the step that was looked at last was bad on any process; None if none was since the last call.

    Raises:
        NonFiniteError: The config wants to stop at the first, or there were too many in a row.
    """
    if bad is None:
        return
    progress, config = run.state.progress, run.config.train
    progress.bad_steps = progress.bad_steps + 1 if bad else 0
    run.was_bad = None
    if not bad or (config.on_nonfinite == "skip" and progress.bad_steps < config.max_bad_steps):
        return
    many = f"{progress.bad_steps} steps in a row were" if progress.bad_steps > 1 else "a step was"
    raise NonFiniteError(
        f"{many} not finite, the last before step {progress.step + 1}; expected finite losses and gradients; the "
        f"weights are unharmed and saved. Find where it began: detrkit train --replay {folder_of(run)}; then mend "
        "the boxes of the images it names, lower train.lr, or set train.precision=32"
    )


def folder_of(run: Run) -> str:
    """Where the bad steps of a run are saved."""
    return str(run.run_dir / "nonfinite")


def _report(run: Run, last: LastStep, values: Mapping[str, float]) -> None:
    """Say what was not finite, and save all that it takes to repeat it."""
    progress = run.state.progress
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    ids = [image_id for batch in last.batches for image_id in batch.image_ids]
    shown = f"{', '.join(map(str, ids[:8]))}{' ...' if len(ids) > 8 else ''}"
    what = last.damage or numbers
    message = f"step {last.step} of epoch {last.epoch} is not finite: {what}; images {shown}; it changed no weight"
    if progress.bad_steps_saved < MOST_SAVED:
        progress.bad_steps_saved += 1
        path = run.run_dir / "nonfinite" / f"step-{last.step:06d}-process-{run.fabric.global_rank}.pt"
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(path, _replay(run, last, values))
        message += f"; find where it began: detrkit train --replay {path}"
    run.log.event(last.step, last.epoch, message)


def _replay(run: Run, last: LastStep, values: Mapping[str, float]) -> dict[str, Any]:
    """What a replay file holds; weights and all are those that the step began with."""
    return {
        "kind": "replay",
        "config": run.config.model_dump(mode="json"),
        "class_map": run.class_map.to_dict(),
        "model": run.state.module.state_dict(),
        "step": last.step,
        "epoch": last.epoch,
        "process": run.fabric.global_rank,
        "world_size": run.fabric.world_size,
        "micro_batch": last.micro_batch,
        "num_threads": torch.get_num_threads(),
        "normalizers": dataclasses.astuple(last.normalizers),
        "scale": last.scale,
        "values": dict(values),
        "damage": last.damage,
        "batches": [_pack(batch) for batch in last.batches],
    }


def _pack(batch: Batch) -> dict[str, Any]:
    """A batch as tensors and primitives."""
    return {
        "images": batch.images.clone(),
        "padding_mask": batch.padding_mask.clone(),
        "labels": batch.truth.labels.clone(),
        "boxes_cxcywh": batch.truth.boxes_cxcywh.clone(),
        "counts": list(batch.truth.counts),
        "sizes_hw": [list(size) for size in batch.sizes_hw],
        "image_ids": list(batch.image_ids),
    }


def _to_host(row: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """A copy of a tensor on the host that nobody waits for, and what waits for it."""
    if row.device.type != "cuda":
        return row, _nothing
    host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
    host.copy_(row, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return host, event.synchronize


def _nothing() -> None:
    """What is on the host has arrived."""


def _is_finite(value: float) -> bool:
    return value - value == 0
