"""Measures of the hardware: peak memory, floating-point operations, instructions of the CPU."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from detrkit.errors import UsageError
from detrkit.machine import peak_resident_bytes

_CLEAR_REFS = Path("/proc/self/clear_refs")


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device of a name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: The name is unknown, or torch finds no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f'device is {device!r}, expected "auto", "cpu", "cuda" or "cuda:1"') from error
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = counts.get(resolved.type, 0)
    if (resolved.index or 0) >= count:
        there = f"torch finds {count or 'no'} {resolved.type.upper()} device{'' if count == 1 else 's'}"
        raise UsageError(f"device {resolved} was asked for, but {there} here; use cpu or auto")
    return resolved


class PeakMemory:
    """The most memory in use since :meth:`reset`, in bytes.

    On CUDA what torch's allocator handed out. On the CPU the resident memory of this process, whose peak the
    kernel notes at every page: Linux sets its mark back (``/proc/self/clear_refs``); elsewhere it is that of the
    whole life of the process, an upper bound.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._device = device

    def now(self) -> int:
        """Return the memory in use at this moment."""
        if self._cuda:
            return torch.cuda.memory_allocated(self._device)
        return int(psutil.Process().memory_info().rss)

    def reset(self) -> None:
        """Forget what was before."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with contextlib.suppress(OSError):
            _CLEAR_REFS.write_text("5", encoding="ascii")

    def peak(self) -> int:
        """Return the most since then."""
        if self._cuda:
            return torch.cuda.max_memory_allocated(self._device)
        return peak_resident_bytes()

    def limit(self) -> int:
        """Return all the memory there is."""
        if self._cuda:
            return int(torch.cuda.get_device_properties(self._device).total_memory)
        return int(psutil.virtual_memory().total)


def count_flops() -> FlopCounterMode:
    """Count floating-point operations inside ``with``: those of matrix products, convolutions and attention.

    The rest is little. A multiplication and an addition are two; backward is included. What is computed twice by
    :mod:`detrkit.nn.recompute` counts twice: count without it for a utilisation.
    """
    return FlopCounterMode(display=False)


def has_fast_bf16() -> bool:
    """Return True if the CPU multiplies bfloat16 numbers itself; others emulate it, more slowly than float32."""
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
