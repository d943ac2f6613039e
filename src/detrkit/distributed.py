"""Devices and processes: how they are started, exchange gradients, and part."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from detrkit.config import Precision, TrainConfig
from detrkit.errors import ConfigError, TrainingError
from detrkit.files import read_facts

_PAUSE_S = 0.02

_PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
"""Fabric's names."""

_BUCKET_BYTES = 64 * 2**20
"""Gradients are exchanged in pieces of about this size: few messages, little extra memory."""

_LOST_WORDS: tuple[str, ...] = tuple(read_facts(__file__)["lost"])


def make_fabric(config: TrainConfig) -> Fabric:
    """Make and launch devices, processes and precision as the config wants them.

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
    fabric = Fabric(
        accelerator="cuda" if use_cuda else "cpu",
        strategy=DDPStrategy(**_no_exchange_of_buffers()) if devices * nodes > 1 else "auto",
        devices=devices,
        num_nodes=nodes,
        precision=_PRECISIONS[config.precision],
        plugins=[TorchElasticEnvironment()] if _is_launched() else None,
    )
    if devices * nodes > 1 and "TORCHELASTIC_RUN_ID" in os.environ and not torch.distributed.is_initialized():
        join_processes("nccl" if use_cuda else "gloo")
    fabric.launch()
    return fabric


def fabric_precision(precision: Precision, device: torch.device) -> Any:
    """Return Fabric's name of a precision; on a CPU, which has no float16, bfloat16 stands in for it."""
    return _PRECISIONS["bf16" if precision == "16" and device.type == "cpu" else precision]


def exchanges_late(config: TrainConfig) -> bool:
    """Tell whether gradients are exchanged after the backward pass, not by DDP within it.

    A process that ran out of memory would be waited for there, and so would parts that rest by turns; DDP's search
    for these sees no masks, which are computed by the losses.
    """
    return config.on_oom == "halve" or config.box_epochs > 0


def _no_exchange_of_buffers() -> dict[str, Any]:
    """Return DDP's option not to exchange buffers before each forward pass; torch 2.15 warns of the former name.

    With ``on_oom=halve`` it would wait there for a process that ran out of memory before.
    """
    names = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}


def _is_launched() -> bool:
    """Tell whether somebody else started all processes and told each its place as torchrun does."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return "TORCHELASTIC_RUN_ID" in os.environ or (there and "LOCAL_WORLD_SIZE" in os.environ)


def _processes(config: TrainConfig) -> tuple[int, int]:
    """Return the number of processes on a machine, and of machines."""
    if not _is_launched():
        return config.devices, config.num_nodes
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if world % local:
        raise ConfigError(
            f"{world} processes, {local} of them on this machine; expected equally many on every machine"
        )
    return local, world // local


def is_restarted() -> bool:
    """Tell whether torchrun has started this training again after a process failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


class ProcessGroup:
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
        """Return every process's value, on the first process; nothing on the others."""
        values: list[Any] = [None] * self.world_size if self.rank == 0 else []
        torch.distributed.gather_object(value, values if self.rank == 0 else None, dst=0, group=self._group)
        return values

    def all_gather(self, value: Any) -> list[Any]:
        """Return every process's value, on all of them."""
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value, group=self._group)
        return values

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set on one of them."""
        flags = torch.tensor([int(flag)])
        torch.distributed.all_reduce(flags, group=self._group)
        return bool(flags)

    @staticmethod
    def share_statistics(model: nn.Module) -> None:
        """Give every process the first one's running means of batch norms: each has seen other images."""
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                for buffer in part.buffers():
                    torch.distributed.broadcast(buffer, 0)


def check_same_state(fabric: Fabric, state: Mapping[str, Any]) -> None:
    """Check that all processes resume from the same checkpoint.

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
def lost_processes() -> Iterator[None]:
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


def join_processes(backend: str, timeout_s: float = 1800.0) -> None:
    """Form the process group of this start's processes, as the environment of torchrun describes it.

    torchrun keeps one key-value store over all restarts (torch 2.10, ``dynamic_rendezvous.py``: "the first
    rendezvous"), and the processes exchange their addresses through it. A process that is early after a restart
    finds the address of a dead one there, and fails to connect. So those that live agree on a name first, below
    which they exchange everything else. torchrun's own count of restarts cannot be that name: its agents on
    other machines count differently.

    Args:
        backend: ``gloo`` or ``nccl``.
        timeout_s: Seconds that an exchange may wait for another process.

    Raises:
        TrainingError: Not all processes came.
    """
    timeout = timedelta(seconds=timeout_s)
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    name = agree_on_name(PrefixStore("detrkit", store), rank, world_size, timeout_s)
    torch.distributed.init_process_group(
        backend, store=PrefixStore(name, store), rank=rank, world_size=world_size, timeout=timeout
    )


def agree_on_name(store: Any, rank: int, world_size: int, timeout_s: float) -> str:
    """Agree on a name that all processes alive have in common with nobody before them.

    Each writes a word that it has just made up. The first process offers the list of all words it finds, again
    whenever one changes; a process takes an offer with its own word in it, and once all have taken the same, it is
    the name. What is left in the store of former starts never holds the new words, so it is never taken.

    Args:
        store: Store shared by all, perhaps with what former starts left in it.
        rank: Number of this process.
        world_size: Number of processes.
        timeout_s: Seconds to wait for the others.

    Raises:
        TrainingError: Not all processes came.
    """
    word = uuid.uuid4().hex[:12]
    store.set(f"word/{rank}", word)
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if rank == 0:
            words = _values(store, "word", world_size)
            if "" not in words:
                offer = " ".join(words)
                store.set("offer", offer)
                if all(taken == offer for taken in _values(store, "taken", world_size)[1:]):
                    store.set("name", offer)
                    return _short(offer)
        else:
            offer = _value(store, "offer")
            if word in offer.split():
                store.set(f"taken/{rank}", offer)
                if _value(store, "name") == offer:
                    return _short(offer)
        time.sleep(_PAUSE_S)
    raise TrainingError(
        f"process {rank} has waited {timeout_s:.0f} s for the {world_size - 1} others of the training; expected "
        "torchrun with the same --nnodes and --nproc-per-node on every machine"
    )


def _values(store: Any, key: str, count: int) -> list[str]:
    return [_value(store, f"{key}/{rank}") for rank in range(count)]


def _value(store: Any, key: str) -> str:
    """Return what the store holds, or nothing; asking for what is not there would wait."""
    return store.get(key).decode() if store.check([key]) else ""


def _short(offer: str) -> str:
    return hashlib.sha256(offer.encode()).hexdigest()[:16]
