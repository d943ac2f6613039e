"""Replay of a saved bad step: the same numbers again, and where they stopped being finite."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from detrkit.checkpoint import load_checkpoint
from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.distributed import make_fabric
from detrkit.errors import CheckpointError, DetrkitError, UsageError
from detrkit.losses.criterion import Criterion, Normalizers
from detrkit.training.forward_backward import Passes, summed_values
from detrkit.training.nonfinite.diagnosis import Diagnosis, NumberPair
from detrkit.training.nonfinite.saved_step import REPLAY_FOLDER, SavedStep, machine
from detrkit.training.nonfinite.trace import bad_terms, trace_backward, watch_forward
from detrkit.training.nonfinite.watch import bad_weights, damaged_boxes
from detrkit.types import Batch

_NOT_COMPARED = ("scale", "own_grad_norm")


def replay_step(
    saved: SavedStep, model: nn.Module, criterion: Criterion, fabric: Fabric | None = None
) -> Diagnosis:
    """Repeat a step, compare its losses bit for bit, and find where it stopped being finite.

    Args:
        saved: the step, from :func:`read_step`.
        model: model built from the step's config; gets its weights.
        criterion: criterion built from the step's config.
        fabric: device and precision; made from the config if not given.

    Raises:
        CheckpointError: The weights are not those of the model.
        torch.OutOfMemoryError: This machine does not hold the step.
    """
    # the model as it was: weights, memory layout, modes, precision
    fabric = fabric or _make_fabric(saved.config)
    try:
        model.load_state_dict(saved.model)
    except RuntimeError as error:
        raise CheckpointError(f"{saved.path} has weights of another model: {error}") from error
    model.to(memory_format=torch.channels_last)
    wrapped = fabric.setup_module(model)
    for name, module in model.named_modules():
        module.training = name not in saved.resting
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in saved.frozen and parameter.requires_grad)
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if scaler is not None and "scale" in saved.values:
        # it shall neither grow nor shrink
        fixed = {"scale": saved.values["scale"], "growth_factor": 2.0, "backoff_factor": 0.5}
        scaler.load_state_dict({**fixed, "growth_interval": 2000, "_growth_tracker": 0})

    # the step once for its numbers, and once more in search of the fault
    passes = Passes(saved.config, fabric, wrapped, criterion, saved.process)
    batches = [batch.unpack() for batch in saved.batches]
    with _threads(saved.num_threads):
        values = _repeat(saved, batches, passes, model)
        found = _diagnose(saved, batches, passes, model)
    compared = {
        name: NumberPair(recorded, values.get(name))
        for name, recorded in saved.values.items()
        if name not in _NOT_COMPARED and (name != "grad_norm" or saved.world_size == 1)
    }
    return dataclasses.replace(found, values=compared, machine_now=machine(fabric.device))


def _repeat(saved: SavedStep, batches: list[Batch], passes: Passes, model: nn.Module) -> dict[str, float]:
    """Make the step exactly as the training did; return its values."""
    arguments = (batches, Normalizers(*saved.normalizers), saved.step - 1, saved.micro_batch)
    losses = passes.gradients(*arguments, share=saved.share, damage="".join(damaged_boxes(batches)[:1]))
    values = {name: value * saved.share for name, value in summed_values(losses).items()}
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    if "scale" in saved.values:
        gradients = [gradient * (1.0 / saved.values["scale"]) for gradient in gradients]
    values["grad_norm"] = nn.utils.get_total_norm(gradients)
    model.zero_grad(set_to_none=True)
    return {name: float(value) for name, value in values.items()}


def _diagnose(saved: SavedStep, batches: list[Batch], passes: Passes, model: nn.Module) -> Diagnosis:
    """Look at micro-batch after micro-batch, until something is not finite."""
    found = Diagnosis(
        file=str(saved.path),
        step=saved.step,
        epoch=saved.epoch,
        process=saved.process,
        image_ids=tuple(image_id for batch in batches for image_id in batch.image_ids),
        machine_then=saved.machine,
        damaged_boxes=tuple(damaged_boxes(batches)),
        bad_weights=tuple(bad_weights(model)),
    )
    normalizers = Normalizers(*saved.normalizers)
    devices = [passes.fabric.device] if passes.fabric.device.type == "cuda" else []
    passes.seed(saved.step - 1)
    for part in passes.micro_batches(batches, saved.step - 1, saved.micro_batch):
        with torch.random.fork_rng(devices):  # the backward search draws the same random numbers once more
            place = None
            with torch.no_grad(), torch.random.fork_rng(devices), watch_forward(model) as watch:
                losses = passes.losses(part, normalizers)
            images = tuple(part.image_ids[row] for row in watch.input_rows if row < len(part.image_ids))
            terms = tuple(bad_terms(losses))
            if watch.found is not None or watch.input_rows or terms:
                return dataclasses.replace(found, bad_inputs=images, forward=watch.found, bad_terms=terms)

            def forward(part: Batch = part) -> Any:
                return passes.losses(part, normalizers)

            place = trace_backward(model, forward, lambda total: passes.fabric.backward(total * saved.share))
        if place is not None:
            return dataclasses.replace(found, backward=place)
        with torch.no_grad():
            passes.losses(part, normalizers)  # the next micro-batch goes on from here
    return found


def _make_fabric(config: Config) -> Fabric:
    """Return a Fabric of one process in the precision of the run, on its kind of device if there is one."""
    device = config.train.device if torch.cuda.is_available() else "cpu"
    train = config.train.model_copy(update={"device": device, "devices": 1, "num_nodes": 1})
    if train.precision != "16" or (torch.cuda.is_available() and device != "cpu"):
        return make_fabric(train)
    scaler = torch.amp.GradScaler("cpu")
    return Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", device="cpu", scaler=scaler))


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set the number of threads that the step was made with: sums in another order differ in the last bits."""
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def find_step(source: str | os.PathLike[str]) -> Path:
    """Return the replay file that is meant: the file itself, or the first in a run or its folder of bad steps.

    Raises:
        UsageError: There is none.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(path.glob("step-*.pt")) or sorted((path / REPLAY_FOLDER).glob("step-*.pt"))
        if not found:
            raise UsageError(
                f"{path} holds no saved step; expected a run folder with {REPLAY_FOLDER}/, which is there once a "
                "step was not finite, or one of its files"
            )
        return found[0]
    if not path.is_file():
        raise UsageError(f"there is no {path}; expected RUN/{REPLAY_FOLDER}/step-NUMBER-process-NUMBER.pt")
    return path


def read_step(path: Path) -> SavedStep:
    """Read a replay file.

    Raises:
        CheckpointError: The file is damaged, of another kind, or holds what no step can be.
    """
    payload = load_checkpoint(path)
    if payload.get("kind") != "replay":
        raise CheckpointError(
            f"{path} is a checkpoint, expected a saved step, as they lie in RUN/{REPLAY_FOLDER}/"
        )
    try:
        config, class_map = update_config(Config(), payload["config"]), ClassMap.from_dict(payload["class_map"])
        return msgspec.convert({**payload, "path": path, "config": config, "class_map": class_map}, SavedStep)
    except (DetrkitError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
