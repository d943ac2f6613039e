"""Devices and processes: how they are started, exchange gradients, and part."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from detrkit.config import TrainConfig
from detrkit.errors import ConfigError

_BUCKET_BYTES = 64 * 2**20
"""Gradients are exchanged in pieces of about this size: few messages, little extra memory."""


def make_fabric(config: TrainConfig) -> Fabric:
    """Devices, processes and precision as the config wants them, launched.

    Under torchrun the number of processes and machines is what torchrun started.

    Raises:
        ConfigError: The config asks for CUDA and torch sees no such device, or for float16 on the CPU.
    """
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise ConfigError('train.device is cuda, but torch sees no CUDA device; use cpu or run "detrkit doctor"')
    use_cuda = has_cuda and config.device != "cpu"
    if config.precision == "16" and not use_cuda:
        raise ConfigError("train.precision is 16, which needs a CUDA device; use bf16 or 32 on the CPU")
    if config.deterministic and use_cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts, or cuBLAS may vary
        torch.use_deterministic_algorithms(True)
    # its notes on precision and processes say what the config says
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    devices, nodes = _processes(config)
    precision: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    fabric = Fabric(
        accelerator="cuda" if use_cuda else "cpu",
        strategy="ddp" if devices * nodes > 1 else "auto",
        devices=devices,
        num_nodes=nodes,
        precision=precision[config.precision],
    )
    fabric.launch()
    return fabric


def _processes(config: TrainConfig) -> tuple[int, int]:
    """Processes on a machine, and machines."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return config.devices, config.num_nodes
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return local, world // local


def leave_processes(fabric: Fabric) -> None:
    """Part from the other processes together: one that just ends can bring its neighbours' threads down."""
    if fabric.world_size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], world_size: int) -> None:
    """Give every process the mean of all processes' gradients, as DDP would during the backward pass.

    All processes must have gradients for the same parameters.
    """
    bucket: list[Tensor] = []
    size = 0
    for gradient in [parameter.grad for parameter in parameters if parameter.grad is not None]:
        bucket.append(gradient)
        size += gradient.nbytes
        if size >= _BUCKET_BYTES:
            _average(bucket, world_size)
            bucket, size = [], 0
    if bucket:
        _average(bucket, world_size)


def _average(gradients: list[Tensor], world_size: int) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat.div_(world_size)
    torch.distributed.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(own) for part, own in zip(parts, gradients, strict=True)])
