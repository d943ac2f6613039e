"""Activation checkpointing (arXiv:1604.06174): less memory in training for about a third more arithmetic.

Parts of a model that can forget what is inside them and compute it again in the backward pass carry a switch; the
stacks of layers of the transformer and the stages of the backbone do. Only what enters a layer or block is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_Result = TypeVar("_Result")


class Recomputing(nn.Module):
    """A part whose forward goes through :func:`run_part` for each of its layers.

    Attributes:
        recompute: Whether their activations are computed again in the backward pass; not part of the state.
    """

    recompute = False


def set_recompute(model: nn.Module, on: bool) -> int:
    """Switch recomputation on or off wherever a model knows how to.

    Names, weights and results stay as they are; it matters only in training, where gradients are asked for.

    Returns:
        How many parts have the switch.
    """
    parts = [module for module in model.modules() if isinstance(module, Recomputing)]
    for part in parts:
        part.recompute = on
    return len(parts)


def run_part(part: Recomputing, layer: nn.Module, forward: Callable[..., _Result], *args: Any) -> _Result:
    """Run ``forward(*args)``, whose activations are forgotten until the backward pass if ``part`` says so.

    Dropout draws the same masks again, autocast is as it was, and gradients are the same bits.

    Args:
        part: Has the switch.
        layer: What ``forward`` runs; its batch norms must not count a batch twice.
        forward: The work.
        args: Of ``forward``.
    """
    if not (part.recompute and part.training and torch.is_grad_enabled()):
        return forward(*args)
    found: Any = checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, layer))
    return found  # type: ignore[no-any-return]


def _contexts(layer: nn.Module) -> tuple[Any, Any]:
    """Return what the forward and the recomputation run in."""
    return contextlib.nullcontext(), _without_running_statistics(layer)


@contextlib.contextmanager
def _without_running_statistics(layer: nn.Module) -> Iterator[None]:
    """Let batch norms work as in the forward, but leave their averages, which saw the batch already."""
    norms = [norm for norm in layer.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    before = [[buffer.clone() for buffer in norm.buffers()] for norm in norms]
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, kept in zip(norms, before, strict=True):
                for buffer, value in zip(norm.buffers(), kept, strict=True):
                    buffer.copy_(value)
