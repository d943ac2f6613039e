"""A plain multi-layer perceptron."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn import functional


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        input_dim: Features in.
        hidden_dim: Features between layers.
        output_dim: Features out.
        num_layers: Linear layers in all, at least 1.
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        dims = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Turn ``[..., input_dim]`` to ``[..., output_dim]``."""
        *hidden, last = self.layers
        for layer in hidden:
            x = functional.relu(layer(x))
        return last(x)  # type: ignore[no-any-return]
