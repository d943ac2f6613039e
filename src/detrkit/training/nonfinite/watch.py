"""Steps whose loss or gradient is not finite: found without asking the device, saved so that they can be repeated.

A loss that is not finite makes every gradient NaN, and a gradient norm that is not finite lets the optimiser skip
the step, on the device and on all processes alike. The host learns of it one step later, where the matcher has
waited for the device anyway; no weight has changed in between, so weights and batch are still those of the step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detrkit.errors import NonFiniteError
from detrkit.training.nonfinite.saved_step import REPLAY_FOLDER, SavedBatch, SavedStep, machine, write_step
from detrkit.training.session import LastStep, Run
from detrkit.types import Batch

MOST_SAVED = 3
"""Bad steps of a run that are saved: each holds all weights."""

# Below this the float16 loss scale means that no step has had finite gradients for very long.
_LEAST_SCALE = 2.0**-14


def damaged_boxes(batches: Sequence[Batch]) -> list[str]:
    """Return the boxes of batches on the host that are not finite or have no area, in words."""
    found = []
    for batch in batches:
        boxes = batch.truth.boxes_cxcywh.numpy()
        sound = np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1)
        ends = np.cumsum(batch.truth.counts)
        for row in np.flatnonzero(~sound).tolist():
            image = int(np.searchsorted(ends, row, side="right"))
            number = row - int(ends[image]) + batch.truth.counts[image] + 1
            numbers = ", ".join(f"{value:.4g}" for value in boxes[row].tolist())
            found.append(
                f"image {batch.image_ids[image]} has a box cxcywh ({numbers}), its object number {number}; "
                "expected finite numbers and an area"
            )
    return found


def bad_weights(model: nn.Module) -> list[str]:
    """Return the names of weights and buffers that are not finite."""
    state = model.state_dict()
    return [
        name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())
    ]


def note_step(
    run: Run, facts: Mapping[str, Any], names: Sequence[str], row: Tensor, others: Mapping[str, Tensor]
) -> None:
    """Remember a step until its values have reached the host.

    Args:
        run: the training.
        facts: all fields of :class:`LastStep` but names, values and arrival.
        names: names of the values in the row.
        row: float32 ``[n]`` on the device.
        others: scalars on the device, by name.
    """
    if others:
        row = torch.cat((row, torch.stack([value.float().reshape(()) for value in others.values()])))
    values, arrival = _to_host(row)
    run.last_step = LastStep(**facts, names=(*names, *others), values=values, arrival=arrival)


def check_previous_step(run: Run) -> None:
    """Check the step before, before any weight changes; if it was bad, count it, save it and say so.

    All processes take part, and count the same.
    """
    last, run.last_step = run.last_step, None
    if last is None:
        return
    if last.arrival is not None:
        last.arrival.synchronize()
    values = dict(zip(last.names, last.values.numpy().tolist(), strict=True))
    own, shared = _is_own_fault(last, values), _is_bad(values)
    somebodys, is_bad = own, own or shared
    if run.fabric.world_size > 1:
        flags = torch.tensor([int(own), int(is_bad)])
        torch.distributed.all_reduce(flags, group=run.host_group)
        somebodys, is_bad = flags.bool().tolist()
    own = own or (shared and not somebodys)
    progress = run.state.progress
    progress.bad_steps = progress.bad_steps + 1 if is_bad else 0
    if not is_bad:
        return
    is_saved = progress.bad_steps_saved < MOST_SAVED
    progress.bad_steps_saved += is_saved  # the same on all processes: the first one's count goes into checkpoints
    message = _report(run, last, values, is_saved) if own else ""
    for line in _all_messages(run, message):
        run.log.event(last.step, last.epoch, line)


def check_bad_steps(run: Run) -> None:
    """Stop if too many steps in a row were bad; the same on all processes.

    Raises:
        NonFiniteError: The config wants to stop at the first, or there were too many in a row.
    """
    progress, config = run.state.progress, run.config.train
    many = progress.bad_steps
    if many == 0 or (config.on_nonfinite == "skip" and many < config.max_bad_steps):
        return
    progress.bad_steps = 0  # whoever mends the cause and resumes has as many steps again
    steps = f"{many} steps in a row were" if many > 1 else "a step was"
    weights = bad_weights(run.state.module)
    state = "the weights are unharmed and saved"
    advice = "mend the boxes of the images it names, lower train.lr, or set train.precision=32"
    if weights:
        state = f"{len(weights)} weights are not finite themselves, such as {weights[0]}, so that no step can be"
        advice = "begin from sound weights (--init)"
    raise NonFiniteError(
        f"{steps} not finite, the last before step {progress.step + 1}; expected finite losses and gradients; "
        f"{state}. Find where it began: detrkit train --replay {run.run_dir / REPLAY_FOLDER}; then {advice}"
    )


def _is_own_fault(last: LastStep, values: Mapping[str, float]) -> bool:
    """Return True if this process surely made the step not finite."""
    if last.damage or not math.isfinite(values["loss"]):
        return True
    return "own_grad_norm" in values and not math.isfinite(values["own_grad_norm"]) and _is_bad(values)


def _is_bad(values: Mapping[str, float]) -> bool:
    """Return True if the gradient of all processes was not finite."""
    # with float16 an infinite gradient alone is the loss scale finding its level, unless it sank to nothing
    if "scale" in values and values["scale"] >= _LEAST_SCALE:
        return False
    return not math.isfinite(values["grad_norm"])


def _all_messages(run: Run, message: str) -> list[str]:
    """Return the messages of all processes about a bad step."""
    if run.fabric.world_size == 1:
        return [message]
    found: list[Any] = [None] * run.fabric.world_size
    torch.distributed.all_gather_object(found, message, group=run.host_group)
    return [f"process {process}: {text}" for process, text in enumerate(found) if text]


def _report(run: Run, last: LastStep, values: Mapping[str, float], is_saved: bool) -> str:
    """Save a bad step, and return what was not finite, where, and how to repeat it."""
    terms = (name for name in last.names if name != "scale")
    numbers = ", ".join(f"{name} {values[name]:.4g}" for name in terms)
    ids = [image_id for batch in last.batches for image_id in batch.image_ids]
    shown = f"{', '.join(map(str, ids[:8]))}{' ...' if len(ids) > 8 else ''}"
    weights = bad_weights(run.state.module)
    others = f" and {len(weights) - 1} others" if len(weights) > 1 else ""
    found = last.damage or (f"the weight {weights[0]}{others} is not finite" if weights else "")
    message = (
        f"step {last.step} of epoch {last.epoch} is not finite{': ' if found else ''}{found}; {numbers}; "
        f"images {shown}; it changed no weight"
    )
    if is_saved:
        path = run.run_dir / REPLAY_FOLDER / f"step-{last.step:06d}-process-{run.fabric.global_rank}.pt"
        path.parent.mkdir(exist_ok=True)
        write_step(_saved_step(path, run, last, values))
        message += f"; find where it began: detrkit train --replay {path}"
    return message


def _saved_step(path: Path, run: Run, last: LastStep, values: Mapping[str, float]) -> SavedStep:
    names = [name for name, _ in run.state.module.named_modules()]
    return SavedStep(
        path=path,
        config=run.config,
        class_map=run.setup.class_map,
        model=run.state.module.state_dict(),
        step=last.step,
        epoch=last.epoch,
        process=run.fabric.global_rank,
        world_size=run.fabric.world_size,
        share=last.share,
        micro_batch=last.micro_batch,
        num_threads=torch.get_num_threads(),
        machine=machine(run.fabric.device),
        resting=[name for name, trains in zip(names, last.training, strict=True) if not trains],
        frozen=list(last.frozen),
        normalizers=dataclasses.astuple(last.normalizers),
        values=dict(values),
        damage=last.damage,
        batches=[SavedBatch.pack(batch) for batch in last.batches],
    )


def _to_host(row: Tensor) -> tuple[Tensor, Any]:
    """Copy a tensor to the host without waiting for it; return it and the event of its arrival, if any."""
    if row.device.type != "cuda":
        return row, None
    host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
    host.copy_(row, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return host, event
