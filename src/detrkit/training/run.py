"""A training in progress: its parts, how they are put together, checked and saved."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detrkit.config import Config, TrainConfig
from detrkit.errors import CheckpointError, ConfigError, NonFiniteError
from detrkit.losses.criterion import Criterion
from detrkit.training.checkpoint import CheckpointStore
from detrkit.training.ema import Ema
from detrkit.training.log import RunLog
from detrkit.training.optim import build_optimizer
from detrkit.training.signals import StopRequest
from detrkit.training.state import Progress, TrainingState
from detrkit.training.window import StepWindow
from detrkit.types import Batch, ClassMap

Evaluate = Callable[[nn.Module], Mapping[str, float]]
DrawSamples = Callable[[nn.Module], Sequence[tuple[str, np.ndarray]]]

# Below this the float16 loss scale means that no step has had finite gradients for very long.
_LEAST_SCALE = 2.0**-14


@dataclasses.dataclass
class Run:
    """The parts of a training, handed from function to function."""

    config: Config
    class_map: ClassMap
    run_dir: Path
    fabric: Fabric
    model: Any  # Fabric's wrapper, which brings mixed precision and gradient exchange; its inside is state.module
    criterion: Criterion
    loader: DataLoader[Batch | None]
    evaluate: Evaluate
    draw_samples: DrawSamples | None
    state: TrainingState
    log: RunLog
    store: CheckpointStore
    stop: StopRequest
    batches_per_epoch: int
    total_steps: int
    host_group: Any
    saved_at_s: float

    @property
    def epoch(self) -> int:
        """The present epoch as people count, from 1."""
        return self.state.progress.epoch + 1


def make_fabric(config: TrainConfig) -> Fabric:
    """Devices, processes and precision as the config wants them, launched.

    Raises:
        ConfigError: The config asks for CUDA and torch sees no such device, or for float16 on the CPU.
    """
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise ConfigError('train.device is cuda, but torch sees no CUDA device; use cpu or run "detrkit doctor"')
    use_cuda = has_cuda and config.device != "cpu"
    if config.precision == "16" and not use_cuda:
        raise ConfigError("train.precision is 16, which needs a CUDA device; use bf16 or 32 on the CPU")
    # its notes on precision and processes say what the config says
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    several = config.devices * config.num_nodes > 1
    precision: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    fabric = Fabric(
        accelerator="cuda" if use_cuda else "cpu",
        strategy="ddp" if several else "auto",
        devices=config.devices,
        num_nodes=config.num_nodes,
        precision=precision[config.precision],
    )
    fabric.launch()
    return fabric


def leave_processes(fabric: Fabric) -> None:
    """Part from the other processes together: one that just ends can bring its neighbours' threads down."""
    if fabric.world_size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def build_state(config: Config, model: nn.Module, fabric: Fabric) -> tuple[TrainingState, Any]:
    """The state at the beginning, and Fabric's wrapper around the model."""
    # the layout that the fast convolutions want; the numbers stay the same
    model.to(memory_format=torch.channels_last)
    wrapped = fabric.setup_module(model)
    window = StepWindow()
    if fabric.world_size > 1:
        window = StepWindow(lambda rows: cast("Tensor", fabric.all_reduce(rows, reduce_op="mean")))
    state = TrainingState(
        module=model,
        optimizer=build_optimizer(model, config.train),
        scaler=getattr(fabric.strategy.precision, "scaler", None),
        ema=Ema(model, config.train.ema_decay) if config.train.ema_decay is not None else None,
        window=window,
        progress=Progress(),
    )
    return state, wrapped


def resume_state(state: TrainingState, resume: Mapping[str, Any], fabric: Fabric) -> int:
    """Restore a saved state; returns the lines of metrics.jsonl that belong to it."""
    processes = resume.get("world_size")
    if processes != fabric.world_size:
        raise CheckpointError(
            f"the run was trained by {processes} processes and is resumed by {fabric.world_size}, which would "
            "repeat and leave out images; use as many, or begin a new run from its weights with train.init"
        )
    state.load_state_dict(resume)
    return int(resume["records"])


def check_finite(run: Run) -> None:
    """Stop at the first step of the window with a loss or gradient that is not finite.

    The step itself changed nothing (:func:`apply_gradients`), so finding out late does no harm. With float16
    an infinite gradient is the loss scale finding its level, unless the scale has sunk to nothing.
    """
    window, scaler = run.state.window, run.state.scaler
    rows = window.rows()
    if not len(rows):
        return
    bad = ~rows[:, window.names.index("loss")].isfinite()
    overflow = ~rows[:, window.names.index("grad_norm")].isfinite()
    if scaler is None or (overflow.all() and scaler.get_scale() < _LEAST_SCALE):
        bad |= overflow
    if not bad.any():
        return
    place = int(bad.nonzero()[0])
    values = dict(zip(window.names, rows[place].tolist(), strict=True))
    step, ids = window.steps[place], window.image_ids[place]
    if run.fabric.is_global_zero:
        report = {
            "step": step,
            "epoch": run.epoch,
            "values": {name: str(value) for name, value in values.items()},
            "image_ids": ids,
        }
        (run.run_dir / "nonfinite.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    shown = f"{', '.join(map(str, ids[:8]))}{' ...' if len(ids) > 8 else ''}"
    raise NonFiniteError(
        f"step {step} of epoch {run.epoch} is not finite: {numbers}; expected finite losses and gradients; images "
        f"{shown} (all in {run.run_dir / 'nonfinite.json'}); the weights are unharmed: check these images' boxes, "
        "lower train.lr, or set train.precision=32"
    )


def save_last(run: Run) -> None:
    """Save the state to resume from."""
    check_finite(run)
    run.log.flush()
    if run.fabric.is_global_zero:
        run.store.save_last(payload(run))
    run.saved_at_s = time.monotonic()


def payload(run: Run) -> dict[str, Any]:
    """What a checkpoint of the run holds."""
    return {
        "config": run.config.model_dump(mode="json"),
        "class_map": run.class_map.to_dict(),
        "world_size": run.fabric.world_size,
        "records": run.log.records,
        **run.state.state_dict(),
    }
