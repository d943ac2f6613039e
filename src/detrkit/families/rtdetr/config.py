"""The model section of RT-DETRv2. No torch in here."""

from __future__ import annotations

from typing import Literal

import pydantic

from detrkit.model_config import ModelConfig


class HybridConfig(ModelConfig):
    """The network of a real-time DETR: a hybrid encoder, and queries chosen from its tokens."""

    masks: Literal[False] = False
    backbone_norm: Literal["auto", "frozen", "group", "batch"] = pydantic.Field(
        "batch", description="of the backbone; all other norms are batch norms, or group norms where it says group"
    )
    frozen_stages: int | Literal["auto"] = 0
    encoder_layers: int = pydantic.Field(1, ge=0)
    ffn_dim: int = pydantic.Field(1024, gt=0, description="inside the feed-forward networks of the decoder")
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    num_queries: int = pydantic.Field(300, gt=0)
    encoder_dim: int = pydantic.Field(256, gt=0, multiple_of=4, description="features of the hybrid encoder")
    encoder_ffn_dim: int = pydantic.Field(1024, gt=0, description="inside the encoder's feed-forward network")
    expansion: float = pydantic.Field(
        1.0, gt=0, description="features inside the encoder's fusions, in its features"
    )
    fusion_blocks: int = pydantic.Field(3, ge=1, description="RepVGG blocks of a fusion")
    feature_levels: int = pydantic.Field(
        3, ge=1, le=5, description="feature maps that are read, each half the size of the one before"
    )
    points: tuple[int, ...] = pydantic.Field((4, 4, 4), min_length=1, description="points a head and level")
    sampling: Literal["bilinear", "discrete"] = pydantic.Field(
        "bilinear",
        description="discrete: attention reads the nearest cell at each point; points then learn nothing",
    )
    eval_layers: int | None = pydantic.Field(
        None, ge=1, description="decoder layers that detect, if fewer than are trained"
    )

    @pydantic.model_validator(mode="after")
    def _points_of_levels(self) -> HybridConfig:
        if len(self.points) != self.feature_levels or min(self.points) < 1:
            raise ValueError(
                f"points are {list(self.points)}, expected 1 or more for each of {self.feature_levels} levels"
            )
        if self.encoder_dim % self.num_heads:
            raise ValueError(f"encoder_dim {self.encoder_dim} is not a multiple of num_heads {self.num_heads}")
        return self


class RTDetrConfig(HybridConfig):
    """The network of RT-DETRv2."""

    family: Literal["rtdetr"] = "rtdetr"
