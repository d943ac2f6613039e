"""Nobody publishes weights of this family: they live in detrkit's own checkpoints, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from detrkit.config import ModelConfig
from detrkit.errors import WeightsError
from detrkit.families.weights import Weights

_ADVICE = "a two-stage model has no published layout; pass on its run folder or a checkpoint of it instead"


def read_weights(path: str | Path, model: ModelConfig | None = None) -> Weights:
    """Says that there are none.

    Raises:
        WeightsError: Always.
    """
    raise WeightsError(f"{path} cannot be read as {model.preset if model else 'two_stage'}: {_ADVICE}")


def write_published(path: str | Path, _state: Mapping[str, Tensor]) -> None:
    """Says that there is no such layout.

    Raises:
        WeightsError: Always.
    """
    raise WeightsError(f"{path} cannot be written: {_ADVICE}")


def write_hub(folder: str | Path, _weights: Weights, _eval_size: int, _max_size: int) -> None:
    """Says that there is no such layout.

    Raises:
        WeightsError: Always.
    """
    raise WeightsError(f"{folder} cannot be written: {_ADVICE}")
