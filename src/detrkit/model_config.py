"""The base of all config sections, and the fields of the model section that every family has. No torch in here."""

from __future__ import annotations

import math
from typing import Literal

import pydantic

DEFAULT_PRESET = "detr-r50"
"""The model of whoever names none."""

BackboneName = Literal[
    "tiny",
    "mini",
    "nano",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet18vd",
    "resnet34vd",
    "resnet50vd",
    "resnet101vd",
    "hgnetv2-b0",
    "hgnetv2-b2",
    "hgnetv2-b4",
    "hgnetv2-b5",
]


class Section(pydantic.BaseModel):
    """A frozen config section that refuses unknown keys, NaN and infinity."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """The network, as far as all families agree; each adds its own fields in ``families/FAMILY/config.py``.

    Defaults are the paper's DETR with ResNet-50 (arXiv:2005.12872, section 4 and A.4).
    """

    preset: str = pydantic.Field(DEFAULT_PRESET, description="preset that the model was made from")
    family: str = pydantic.Field("detr", description="model family, a folder under families/")
    backbone: BackboneName = "resnet50"
    dilation: bool = pydantic.Field(False, description="DC5: the last stage keeps its resolution")
    backbone_norm: Literal["auto", "frozen", "group", "batch"] = pydantic.Field(
        "auto", description="auto: frozen batch norm with pretrained weights, group norm without"
    )
    frozen_stages: int | Literal["auto"] = pydantic.Field(
        "auto", description="backbone stages not trained, the stem counting as one; auto: 2 if pretrained, else 0"
    )
    position_temperature: float = pydantic.Field(10000.0, gt=0)
    position_scale: float = pydantic.Field(
        2 * math.pi, gt=0, description="radians of the fastest sine wave over the whole image"
    )
    hidden_dim: int = pydantic.Field(256, gt=0, multiple_of=4)
    num_heads: int = pydantic.Field(8, gt=0)
    encoder_layers: int = pydantic.Field(6, ge=0)
    decoder_layers: int = pydantic.Field(6, ge=1)
    ffn_dim: int = pydantic.Field(2048, gt=0)
    dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    pre_norm: bool = pydantic.Field(False, description="normalise before each block instead of after it")
    num_queries: int = pydantic.Field(100, gt=0)
    masks: bool = pydantic.Field(False, description="a mask for each query too (paper section 4.4)")
    padding: Literal["exact", "published"] = pydantic.Field(
        "exact",
        description="exact: padding never changes a detection; published: the original code's handling, "
        "in which it does",
    )

    @pydantic.model_validator(mode="after")
    def _heads_and_dilation(self) -> ModelConfig:
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}")
        if self.dilation and self.backbone not in ("resnet50", "resnet101"):
            raise ValueError(
                f"dilation needs a backbone of bottlenecks, resnet50 or resnet101, not {self.backbone}"
            )
        return self
