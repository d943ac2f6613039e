"""The model section of classic DETR. No torch in here."""

from __future__ import annotations

from typing import Literal

import pydantic

from detrkit.model_config import ModelConfig


class DetrConfig(ModelConfig):
    """The network of classic DETR: learned queries, one feature map."""

    family: Literal["detr"] = "detr"
    position: Literal["sine", "learned"] = "sine"
    activation: Literal["relu", "gelu", "gelu_tanh", "silu", "mish", "relu6", "leaky_relu", "tanh"] = (
        pydantic.Field("relu", description="inside the feed-forward networks of encoder and decoder")
    )
    norm_between: bool = pydantic.Field(
        False,
        description="each decoder layer reads the normed output of the one before, as in transformers where "
        "auxiliary_loss is on",
    )
    position_at_input: bool = pydantic.Field(
        False,
        description="also add positions to the encoder's input and start queries from their embedding "
        "(paper, table 3, 'at input'); small backbones see too little of the image to know where they are",
    )
    query_init: Literal["normal", "grid"] = pydantic.Field(
        "normal",
        description="grid: queries start as position encodings of points spread over the image, and look there",
    )
    query_reference: bool = pydantic.Field(
        False, description="boxes are learned offsets from a learned reference box of each query"
    )

    @pydantic.model_validator(mode="after")
    def _grid_needs_sine(self) -> DetrConfig:
        if self.query_init == "grid" and self.position != "sine":
            raise ValueError("query_init is grid, which needs position: sine")
        return self
