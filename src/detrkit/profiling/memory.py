"""What autograd keeps for the backward pass, by part of a model, and the bytes of tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


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
