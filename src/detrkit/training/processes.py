"""Devices and processes: how they are started, exchange gradients, and part."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from detrkit.config import TrainConfig
from detrkit.errors import ConfigError, TrainingError
from detrkit.training.rendezvous import join_processes

_BUCKET_BYTES = 64 * 2**20
"""Gradients are exchanged in pieces of about this size: few messages, little extra memory."""

# What gloo and NCCL say when the process at the other end is gone.
_LOST_WORDS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "gloo/transport",
    "NCCL communicator was aborted",
    "remote process exited",
)


def make_fabric(config: TrainConfig) -> Fabric:
    """Devices, processes and precision as the config wants them, launched.

    Under torchrun the number of processes and machines is what torchrun started; a process group that is there
    already, such as Ray's, is taken as it is.

    Raises:
        ConfigError: The config asks for CUDA and torch sees no such device, or for float16 on the CPU; or the
            machines have unequal numbers of processes.
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
        strategy=DDPStrategy(**_no_exchange_of_buffers()) if devices * nodes > 1 else "auto",
        devices=devices,
        num_nodes=nodes,
        precision=precision[config.precision],
        plugins=[TorchElasticEnvironment()] if _is_launched() else None,
    )
    if devices * nodes > 1 and "TORCHELASTIC_RUN_ID" in os.environ and not torch.distributed.is_initialized():
        join_processes("nccl" if use_cuda else "gloo")
    fabric.launch()
    return fabric


def _no_exchange_of_buffers() -> dict[str, Any]:
    """DDP's option not to exchange buffers before each forward pass; torch 2.15 warns of the former name.

    With ``on_oom=halve`` it would wait there for a process that ran out of memory before.
    """
    names = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}


def _is_launched() -> bool:
    """Whether somebody else started all processes and told each its place as torchrun does."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return "TORCHELASTIC_RUN_ID" in os.environ or (there and "LOCAL_WORLD_SIZE" in os.environ)


def _processes(config: TrainConfig) -> tuple[int, int]:
    """Processes on a machine, and machines."""
    if not _is_launched():
        return config.devices, config.num_nodes
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if world % local:
        raise ConfigError(
            f"{world} processes, {local} of them on this machine; expected equally many on every machine"
        )
    return local, world // local


def is_restarted() -> bool:
    """Whether torchrun has started this training again after a process failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


class Peers:
    """The processes of a training, as one of them sees them: what they exchange on the host, without a device.

    To be made on all processes at once.

    Attributes:
        rank: This process.
        world_size: How many there are.
    """

    def __init__(self) -> None:
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        self._group: Any = torch.distributed.new_group(backend="gloo")

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, on the first process; nothing on the others."""
        values: list[Any] = [None] * self.world_size if self.rank == 0 else []
        torch.distributed.gather_object(value, values if self.rank == 0 else None, dst=0, group=self._group)
        return values

    def all_gather(self, value: Any) -> list[Any]:
        """Every process's value, on all of them."""
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value, group=self._group)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on one of them."""
        flags = torch.tensor([int(flag)])
        torch.distributed.all_reduce(flags, group=self._group)
        return bool(flags)

    def share_statistics(self, model: nn.Module) -> None:
        """Give every process the first one's running means of batch norms: each has seen other images."""
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                for buffer in part.buffers():
                    torch.distributed.broadcast(buffer, 0)


def check_same_state(fabric: Fabric, state: Mapping[str, Any]) -> None:
    """See to it that all processes resume from the same checkpoint.

    Raises:
        TrainingError: This one has read another than the first.
    """
    if fabric.world_size == 1:
        return
    own = [state["progress"][name] for name in ("step", "epoch", "batch")]
    first = fabric.broadcast(own)
    if own != first:
        raise TrainingError(
            f"process {fabric.global_rank} reads a checkpoint of step {own[0]}, the first process one of step "
            f"{first[0]}; expected one run folder on a disk that all machines share"
        )


@contextlib.contextmanager
def lost_peers() -> Iterator[None]:
    """Say what it means when the exchange with another process breaks off.

    Raises:
        TrainingError: Another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST_WORDS):
            raise
        raise TrainingError(
            "another process of the training has ended, and its message tells why; what was saved last is whole: "
            "go on with the same command and --resume (torchrun --max-restarts and Ray do so by themselves)"
        ) from error


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
