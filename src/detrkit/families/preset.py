"""What a preset is: a function that returns a config, and the facts that ``detrkit models`` shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from detrkit.config import Config


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Weights trained on COCO 2017 and published by the authors.

    Args:
        url: Address of the file.
        sha256: Its SHA-256 in hexadecimal, or as many leading digits of it as were published.
        hub_id: The same weights on the Hugging Face hub.
        box_ap: Published AP on COCO val2017, in percent.
        licence: SPDX name.
        pq: Published PQ on COCO val2017, in percent, of models with masks.
    """

    url: str
    sha256: str
    hub_id: str
    box_ap: float
    licence: str
    pq: float | None = None


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named model.

    Args:
        config: Makes the config, trained as published; nothing is shared between calls.
        summary: One line on what it is for.
        params_m: Parameters in millions, with COCO's head.
        backbone_file: File name of torchvision's ImageNet weights for the backbone, if there are any.
        published: Published weights, if there are any.
        fast: What the recipe ``fast`` sets for this preset besides; see :mod:`detrkit.families.recipes`.
    """

    config: Callable[[], Config]
    summary: str
    params_m: float
    backbone_file: str | None = None
    published: PublishedWeights | None = None
    fast: Mapping[str, Any] = dataclasses.field(default_factory=dict)
