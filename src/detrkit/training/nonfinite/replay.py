"""A saved bad step, made again: the same numbers, and where they stopped being finite."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor, nn

from detrkit.checkpoint import load_checkpoint
from detrkit.classes import ClassMap
from detrkit.config import Config, update_config
from detrkit.distributed import make_fabric
from detrkit.errors import CheckpointError, DetrkitError, UsageError
from detrkit.losses.criterion import Criterion, Normalizers
from detrkit.training.forward_backward import Passes, summed_values
from detrkit.training.nonfinite.diagnosis import Diagnosis, NumberPair
from detrkit.training.nonfinite.trace import bad_terms, trace_backward, watch_forward
from detrkit.training.nonfinite.watch import REPLAY_FOLDER, bad_weights, damaged_boxes, machine
from detrkit.types import Batch, GroundTruth

_MOST_THREADS = 1024
_NOT_COMPARED = ("scale", "own_grad_norm")


@dataclasses.dataclass(frozen=True)
class SavedStep:
    """A step as a replay file holds it.

    Args:
        path: The file.
        config: Of the run.
        class_map: Of the run.
        weights: State of the model that the step began with.
        step: Its number, from 1.
        epoch: Its epoch, from 1.
        process: Which of the processes, from 0.
        world_size: How many processes there were.
        share: 0 if this process had no image, otherwise 1.
        micro_batch: Images at once.
        num_threads: Of torch.
        machine: What it was made on, in words.
        resting: Names of the modules that were not in training mode.
        normalizers: Of its losses.
        values: What was recorded: loss, terms, gradient norm, loss scale.
        batches: Its images and objects, on the host.
    """

    path: Path
    config: Config
    class_map: ClassMap
    weights: dict[str, Tensor]
    step: int
    epoch: int
    process: int
    world_size: int
    share: float
    micro_batch: int
    num_threads: int
    machine: str
    resting: tuple[str, ...]
    normalizers: Normalizers
    values: dict[str, float]
    batches: tuple[Batch, ...]


def find_step(source: str | os.PathLike[str]) -> Path:
    """The replay file that is meant: the file itself, or the first step saved in a run or its folder of bad steps.

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
        CheckpointError: It is damaged, of another kind, or holds what no step can be.
    """
    payload = load_checkpoint(path)
    if payload.get("kind") != "replay":
        raise CheckpointError(
            f"{path} is a checkpoint, expected a saved step, as they lie in RUN/{REPLAY_FOLDER}/"
        )
    try:
        saved = _saved_step(path, payload)
    except (DetrkitError, KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be used: {type(error).__name__}: {error}") from error
    if saved.step < 1 or saved.micro_batch < 1 or not 1 <= saved.num_threads <= _MOST_THREADS:
        raise CheckpointError(
            f"{path} cannot be used: step {saved.step}, micro_batch {saved.micro_batch} and num_threads "
            f"{saved.num_threads} are to be at least 1"
        )
    return saved


def replay_step(
    saved: SavedStep, model: nn.Module, criterion: Criterion, fabric: Fabric | None = None
) -> Diagnosis:
    """Repeat a step, compare its losses bit for bit, and find where it stopped being finite.

    Args:
        saved: From :func:`read_step`.
        model: Built from its config; gets its weights.
        criterion: Built from its config.
        fabric: Device and precision; made from its config if not given.

    Raises:
        CheckpointError: The weights are not those of the model.
        torch.OutOfMemoryError: This machine does not hold the step.
    """
    fabric = fabric or _make_fabric(saved.config)
    try:
        model.load_state_dict(saved.weights)
    except RuntimeError as error:
        raise CheckpointError(f"{saved.path} has weights of another model: {error}") from error
    model.to(memory_format=torch.channels_last)
    wrapped = fabric.setup_module(model)
    _restore_modes(model, saved)
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    if scaler is not None and "scale" in saved.values:
        # it shall neither grow nor shrink
        fixed = {"scale": saved.values["scale"], "growth_factor": 2.0, "backoff_factor": 0.5}
        scaler.load_state_dict({**fixed, "growth_interval": 2000, "_growth_tracker": 0})
    passes = Passes(saved.config, fabric, wrapped, criterion, saved.process)
    with _threads(saved.num_threads):
        values = _repeat(saved, passes, model)
        found = _diagnose(saved, passes, model)
    compared = {
        name: NumberPair(recorded, values.get(name))
        for name, recorded in saved.values.items()
        if name not in _NOT_COMPARED and (name != "grad_norm" or saved.world_size == 1)
    }
    return dataclasses.replace(found, values=compared, machine_now=machine(fabric.device))


def _repeat(saved: SavedStep, passes: Passes, model: nn.Module) -> dict[str, float]:
    """The step exactly as the training made it; gives its values."""
    damage = str(next(iter(damaged_boxes(saved.batches)), ""))
    arguments = (saved.batches, saved.normalizers, saved.step - 1, saved.micro_batch)
    losses = passes.gradients(*arguments, share=saved.share, damage=damage)
    values = {name: value * saved.share for name, value in summed_values(losses).items()}
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    if "scale" in saved.values:
        gradients = [gradient * (1.0 / saved.values["scale"]) for gradient in gradients]
    values["grad_norm"] = nn.utils.get_total_norm(gradients)
    model.zero_grad(set_to_none=True)
    return {name: float(value) for name, value in values.items()}


def _diagnose(saved: SavedStep, passes: Passes, model: nn.Module) -> Diagnosis:
    """Micro-batch after micro-batch, until something is not finite."""
    found = Diagnosis(
        file=str(saved.path),
        step=saved.step,
        epoch=saved.epoch,
        process=saved.process,
        image_ids=tuple(image_id for batch in saved.batches for image_id in batch.image_ids),
        machine_then=saved.machine,
        damaged_boxes=tuple(map(str, damaged_boxes(saved.batches))),
        bad_weights=tuple(bad_weights(model)),
    )
    passes.seed(saved.step - 1)
    for part in passes.micro_batches(saved.batches, saved.step - 1, saved.micro_batch):
        before = _random_state(passes.fabric.device)
        with torch.no_grad(), watch_forward(model) as watch:
            losses = passes.losses(part, saved.normalizers)
        after = _random_state(passes.fabric.device)
        images = tuple(part.image_ids[row] for row in watch.input_rows if row < len(part.image_ids))
        terms = tuple(bad_terms(losses))
        if watch.found is not None or watch.input_rows or terms:
            return dataclasses.replace(found, bad_inputs=images, forward=watch.found, bad_terms=terms)
        _set_random_state(passes.fabric.device, before)

        def forward(part: Batch = part) -> Any:
            return passes.losses(part, saved.normalizers)

        place = trace_backward(model, forward, lambda total: passes.fabric.backward(total * saved.share))
        if place is not None:
            return dataclasses.replace(found, backward=place)
        _set_random_state(passes.fabric.device, after)
    return found


def _make_fabric(config: Config) -> Fabric:
    """One process in the precision of the run, on its kind of device if there is one."""
    device = config.train.device if torch.cuda.is_available() else "cpu"
    train = config.train.model_copy(update={"device": device, "devices": 1, "num_nodes": 1})
    if train.precision != "16" or (torch.cuda.is_available() and device != "cpu"):
        return make_fabric(train)
    scaler = torch.amp.GradScaler("cpu")
    return Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", device="cpu", scaler=scaler))


def _restore_modes(model: nn.Module, saved: SavedStep) -> None:
    """Put every module into the mode that it had."""
    modules = dict(model.named_modules())
    unknown = [name for name in saved.resting if name not in modules]
    if unknown:
        raise CheckpointError(f"{saved.path} speaks of a module {unknown[0]!r}, which the model does not have")
    for name, module in modules.items():
        module.training = name not in saved.resting


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads as the step was made with: sums in another order differ in the last bits."""
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def _saved_step(path: Path, payload: Mapping[str, Any]) -> SavedStep:
    num_boxes, class_weight = payload["normalizers"]
    return SavedStep(
        path=path,
        config=update_config(Config(), payload["config"]),
        class_map=ClassMap.from_dict(payload["class_map"]),
        weights=dict(payload["model"]),
        step=int(payload["step"]),
        epoch=int(payload["epoch"]),
        process=int(payload["process"]),
        world_size=int(payload["world_size"]),
        share=float(payload["share"]),
        micro_batch=int(payload["micro_batch"]),
        num_threads=int(payload["num_threads"]),
        machine=str(payload["machine"]),
        resting=tuple(map(str, payload["resting"])),
        normalizers=Normalizers(float(num_boxes), float(class_weight)),
        values={str(name): float(value) for name, value in payload["values"].items()},
        batches=tuple(_unpack(batch) for batch in payload["batches"]),
    )


def _unpack(packed: Mapping[str, Any]) -> Batch:
    """The inverse of how a batch is saved.

    Raises:
        ValueError: Its parts do not belong together.
    """
    images, padding_mask = packed["images"], packed["padding_mask"]
    labels, boxes = packed["labels"], packed["boxes_cxcywh"]
    counts = tuple(map(int, packed["counts"]))
    sizes = tuple((int(height), int(width)) for height, width in packed["sizes_hw"])
    count, _, height, width = images.shape
    fits = (
        padding_mask.shape == (count, height, width)
        and count == len(sizes) == len(counts) >= len(packed["image_ids"])
        and boxes.shape == (len(labels), 4)
        and min(counts) >= 0
        and sum(counts) == len(labels)
        and all(0 < own[0] <= height and 0 < own[1] <= width for own in sizes)
    )
    if not fits:
        raise ValueError("images, sizes and objects of a batch do not belong together")
    image_ids = tuple(map(int, packed["image_ids"]))
    return Batch(images, padding_mask, GroundTruth(labels, boxes, counts), sizes, image_ids, sizes)
