"""Memory that runs out: recognised, and how a step goes on with fewer images at once."""

from __future__ import annotations

import gc

import torch

from detrkit.errors import MemoryExhaustedError

# What torch says where the host's memory is refused; CUDA has a class of its own.
_HOST_WORDS = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the GPU or of the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _HOST_WORDS)


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
    """Half of a micro-batch.

    Args:
        micro_batch: Images at once that did not fit.
        reason: What the device said.

    Raises:
        MemoryExhaustedError: It is a single image already.
    """
    if micro_batch <= 1:
        raise MemoryExhaustedError(
            f"memory does not hold a training step of a single image ({reason}); set train.recompute=true, "
            "train.precision=bf16, smaller transforms.scales and transforms.max_size, or take a smaller model"
        )
    return micro_batch // 2
