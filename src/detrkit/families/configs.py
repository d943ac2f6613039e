"""The model sections of all families, told apart by their ``family``. No torch in here."""

from __future__ import annotations

from typing import Annotated

import pydantic

from detrkit.families.detr.config import DetrConfig
from detrkit.families.dfine.config import DFineConfig
from detrkit.families.rtdetr.config import RTDetrConfig
from detrkit.families.two_stage.config import TwoStageConfig
from detrkit.model_config import ModelConfig

AnyModelConfig = Annotated[
    DetrConfig | TwoStageConfig | RTDetrConfig | DFineConfig, pydantic.Field(discriminator="family")
]
"""The type of ``config.model``: the section of whichever family it names."""

DEFAULT_MODEL = DetrConfig()
"""The section of the default preset."""

MODEL_CONFIGS: dict[str, type[ModelConfig]] = {
    "detr": DetrConfig,
    "two_stage": TwoStageConfig,
    "rtdetr": RTDetrConfig,
    "dfine": DFineConfig,
}
"""The same sections by the names of their families."""
