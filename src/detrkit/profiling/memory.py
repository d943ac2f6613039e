"""Memory of a process or device: its peak over a stretch of work, and what autograd keeps by part of a model."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


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
        """In use at this moment."""
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
        """The most since then."""
        if self._cuda:
            return torch.cuda.max_memory_allocated(self._device)
        if _STATUS.exists():
            for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024

    def limit(self) -> int:
        """All there is."""
        if self._cuda:
            return int(torch.cuda.get_device_properties(self._device).total_memory)
        return int(psutil.virtual_memory().total)


@contextlib.contextmanager
def count_kept(model: nn.Module, found: dict[str, int], label: Callable[[], str]) -> Iterator[None]:
    """Count the bytes that autograd keeps for the backward pass; parameters and buffers do not count.

    Of recomputed parts (:mod:`detrkit.nn.recompute`) nothing inside is kept, and what enters them counts where it
    comes from, if that keeps it.

    Args:
        model: Whose forward runs inside.
        found: Gets the bytes by label.
        label: What runs at the moment.
    """
    own = [*model.parameters(), *model.buffers()]
    seen = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept = []  # so that no address is used twice meanwhile

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append(storage)
            found[label()] = found.get(label(), 0) + storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


def tensor_bytes(tensors: object) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(tensors, Tensor):
        return tensors.nbytes
    if isinstance(tensors, dict):
        return sum(tensor_bytes(value) for value in tensors.values())
    if isinstance(tensors, list | tuple):
        return sum(tensor_bytes(value) for value in tensors)
    return 0
