"""Exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.errors import CheckpointError


def warm_decay(decay: float, count: int) -> float:
    """Return the decay of an average's update by its number, from 1: that of COCO only after COCO's many steps."""
    return min(decay, (1 + count) / (10 + count))


class Ema:
    """Averages of parameters and floating buffers, evaluated and saved as the model.

    The decay warms up as (1 + n) / (10 + n) over the n updates made, so that an average begun from random
    weights forgets them; the count is part of the state, or a resumed run would warm up again.

    Args:
        model: Model being trained.
        decay: Share of the average kept at each update, once warm; 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.count = 0
        self._live = _floating_state(model)
        self._averages = {name: tensor.clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average toward the model's present weights."""
        self.count += 1
        decay = warm_decay(self.decay, self.count)
        torch._foreach_lerp_(list(self._averages.values()), list(self._live.values()), 1.0 - decay)

    @torch.no_grad()
    def adopt(self) -> None:
        """Let the model go on from its averaged weights."""
        torch._foreach_copy_(list(self._live.values()), list(self._averages.values()))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside, and exactly its own again afterwards."""
        live, averages = list(self._live.values()), list(self._averages.values())
        with torch.no_grad():
            own = [tensor.clone() for tensor in live]
            torch._foreach_copy_(live, averages)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(live, own)

    def state_dict(self) -> dict[str, Any]:
        """Return the count of updates and the averaged weights by name."""
        return {"count": self.count, "weights": dict(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved average.

        Raises:
            CheckpointError: The names are not those of this model.
        """
        weights: dict[str, Tensor] = state["weights"]
        if weights.keys() != self._averages.keys():
            name = sorted(weights.keys() ^ self._averages.keys())[0]
            raise CheckpointError(
                f"the saved average and the model differ at {name}; they are of different models"
            )
        self.count = int(state["count"])
        for name, average in self._averages.items():
            average.copy_(weights[name])


def _floating_state(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and floating buffers that a checkpoint holds, by name; live tensors, not copies."""
    state = model.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in state.items() if tensor.is_floating_point()}
