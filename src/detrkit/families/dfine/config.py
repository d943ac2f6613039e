"""The model section of D-FINE. No torch in here."""

from __future__ import annotations

from typing import Literal

import pydantic

from detrkit.families.rtdetr.config import HybridConfig


class DFineConfig(HybridConfig):
    """The network of D-FINE."""

    family: Literal["dfine"] = "dfine"
    edge_scale: float = pydantic.Field(
        4.0, gt=0, description="flatness of the offsets that bins of an edge stand for, reg_scale of the authors"
    )
