"""How the processes that torchrun started find each other, also when it starts them again.

torchrun keeps one key-value store over all restarts (torch 2.10, ``dynamic_rendezvous.py``: "the first
rendezvous"), and the processes exchange their addresses through it. A process that is early after a restart finds
the address of a dead one there, and fails to connect. So those that live agree on a name first, below which they
exchange everything else. torchrun's own count of restarts cannot be that name: its agents on other machines count
differently.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from detrkit.errors import TrainingError

_PAUSE_S = 0.02


def join_processes(backend: str, timeout_s: float = 1800.0) -> None:
    """Form the process group of this start's processes, as the environment of torchrun describes it.

    Args:
        backend: ``gloo`` or ``nccl``.
        timeout_s: How long an exchange may wait for another process.

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
    """A name that all processes alive have in common with nobody before them.

    Each writes a word that it has just made up. The first process offers the list of all words it finds, again
    whenever one changes; a process takes an offer with its own word in it, and once all have taken the same, it is
    the name. What is left in the store of former starts never holds the new words, so it is never taken.

    Args:
        store: Shared by all, perhaps with what former starts left in it.
        rank: This process.
        world_size: How many there are.
        timeout_s: How long to wait for the others.

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
    """What the store holds, or nothing; asking for what is not there would wait."""
    return store.get(key).decode() if store.check([key]) else ""


def _short(offer: str) -> str:
    return hashlib.sha256(offer.encode()).hexdigest()[:16]
