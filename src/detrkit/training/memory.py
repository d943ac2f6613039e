"""Memory that runs out: how it is recognised, how much there is, and fewer images at once."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import torch

from detrkit.errors import DetrkitError, MemoryExhaustedError
from detrkit.files import read_facts

_WORDS: tuple[str, ...] = tuple(read_facts(__file__)["words"])


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, of the GPU or of the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def error_line(error: Exception) -> str:
    """Return the first line of an error, with its kind."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if not isinstance(error, DetrkitError):
        line = f"{'out of memory' if is_out_of_memory(error) else type(error).__name__}: {line}"[:300]
    return line or type(error).__name__


def check_pixel_budget(shape: torch.Size, budget: int | None) -> None:
    """Refuse images ``[B, 3, H, W]`` with more pixels than the budget, as a full memory would.

    Raises:
        torch.OutOfMemoryError: They have more.
    """
    pixels = shape[0] * shape[2] * shape[3]
    if budget is not None and pixels > budget:
        raise torch.OutOfMemoryError(
            f"{shape[0]} x {shape[2]} x {shape[3]} are {pixels:,} pixels, train.pixel_budget is {budget:,}"
        )


def free_memory() -> None:
    """Give back what a failed attempt holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def halved(micro_batch: int, reason: str) -> int:
    """Return half of a micro-batch.

    Args:
        micro_batch: Images at once that did not fit.
        reason: Message of the device.

    Raises:
        MemoryExhaustedError: It is a single image already.
    """
    if micro_batch <= 1:
        raise MemoryExhaustedError(
            f"memory does not hold a training step of a single image ({reason}); set train.recompute=true, "
            "train.precision=bf16, smaller transforms.scales and transforms.max_size, or take a smaller model"
        )
    return micro_batch // 2


def available_bytes(device: torch.device) -> int:
    """Return the bytes that this process could still take, of the GPU or host; containers' limits count."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = [psutil.virtual_memory().available, *_container_room(Path("/sys/fs/cgroup"))]
    if hasattr(psutil, "RLIMIT_AS"):
        process = psutil.Process()
        limit = process.rlimit(psutil.RLIMIT_AS)[0]
        if limit != psutil.RLIM_INFINITY:
            room.append(limit - process.memory_info().vms)
    return max(0, min(room))


def _container_room(root: Path) -> list[int]:
    """Return what the limits of a container leave, by its control group of either version; its cache can go."""
    room = []
    for limit_file, usage_file, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = (root / limit_file).read_text(encoding="ascii").strip()
            used = int((root / usage_file).read_text(encoding="ascii"))
            statistics = ((root / usage_file).parent / "memory.stat").read_text(encoding="ascii")
            if limit != "max":
                cached = dict(line.split() for line in statistics.splitlines()).get(cache_name, "0")
                room.append(int(limit) - used + int(cached))
        except (OSError, ValueError):  # no such group, or not ours to read
            continue
    return room
