"""Muon for matrices beside AdamW for all else, as one optimiser.

AdamW scales each number of a gradient by itself. Muon (Jordan and others, 2024) takes a matrix as what it is, a
map: its momentum is orthogonalised, so that all directions of the map learn at one speed, also those of which the
gradient says little. docs/from-scratch.md has what that brings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
# Of an odd polynomial that draws all singular values between 0 and 1 to about 1 in a few steps (Jordan).
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class MuonAdamW(torch.optim.AdamW):
    """Move the matrices of groups whose ``muon`` is not 0 by Muon, every other parameter by AdamW.

    A convolution's kernel is a matrix of its output channels; the stacked projections of an attention are three.
    The update of a matrix has a root mean square of about ``lr`` times ``muon`` (Liu and others, arXiv:2502.16982,
    take 0.2, AdamW's usual one). As by a fused AdamW, a step is skipped where ``found_inf`` is 1, without asking
    the device.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step by the gradients there are; ``closure`` as AdamW's."""
        everything = self.param_groups
        for group in everything:
            if group["muon"]:
                self._step_matrices(group)
        self.param_groups = [group for group in everything if not group["muon"]]
        # AdamW's own step without the hooks around it, which this step has already
        others = inspect.unwrap(torch.optim.AdamW.step, stop=lambda step: not hasattr(step, "hooked"))
        try:
            return others(self, closure)
        finally:
            self.param_groups = everything

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Move a group's matrices, those of one shape at once."""
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if parameter.grad is not None:
                maps = 3 if name.endswith("in_proj_weight") else 1
                by_shape.setdefault((maps, *parameter.shape), []).append(parameter)
        for (maps, rows, *rest), parameters in by_shape.items():
            matrices = (-1, rows // maps, math.prod(rest))
            gradients = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
            past = torch.stack([self._momentum_of(parameter) for parameter in parameters])
            found_inf = getattr(self, "found_inf", None)
            if found_inf is not None:
                gradients = torch.where(found_inf > 0, past, gradients)  # leaves the momentum as it is
            keeps = 1.0 if found_inf is None else 1.0 - found_inf
            past.lerp_(gradients, 1 - MOMENTUM)
            updates = orthogonalize(gradients.lerp_(past, MOMENTUM).reshape(matrices)).reshape(past.shape)
            # orthogonal rows or columns have a root mean square of one over the root of the longer side
            size = group["lr"] * group["muon"] * math.sqrt(max(matrices[1:]))
            for parameter, momentum, update in zip(parameters, past, updates, strict=True):
                self.state[parameter]["momentum_buffer"].copy_(momentum)
                parameter.mul_(1 - group["lr"] * group["weight_decay"] * keeps)
                parameter.sub_(update * (size * keeps))

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        """Return a parameter's momentum, zeros before its first step."""
        state = self.state[parameter]
        if not state:
            # AdamW asks every state that is loaded for its step; here none is counted
            state.update(step=torch.zeros(()), momentum_buffer=torch.zeros_like(parameter))
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def is_matrix(weight: Tensor, module: nn.Module) -> bool:
    """Return whether a module's weight is a map from many numbers to many.

    Depthwise kernels are not, nor are heads of a few numbers and what reads a box.
    """
    if weight.ndim < 2 or getattr(module, "groups", 1) > 1:
        return False
    return min(len(weight), weight.numel() // len(weight)) >= 16


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return matrices ``[N, A, B]`` with their singular values drawn to between about 0.7 and 1.2; float32.

    Newton and Schulz's iteration in bfloat16, which that purpose is content with.
    """
    x = matrices.bfloat16()
    if is_high := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _POLYNOMIAL
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_high else x).float()
