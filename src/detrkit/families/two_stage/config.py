"""The model section of the two-stage DETR. No torch in here."""

from __future__ import annotations

from typing import Literal

import pydantic

from detrkit.model_config import ModelConfig


class TwoStageConfig(ModelConfig):
    """The network of the two-stage DETR: queries are chosen from the image's tokens."""

    family: Literal["two_stage"] = "two_stage"
    levels: int = pydantic.Field(
        1, ge=1, le=5, description="feature maps that are read, each half the size of the one before"
    )
