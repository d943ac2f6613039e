"""Writers of the layouts in which others publish weights, by family; only export needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from detrkit.config import Config
from detrkit.families.detr.export import write_hub, write_published
from detrkit.families.dfine.weights import DFINE_WEIGHTS
from detrkit.families.family import Family
from detrkit.families.rtdetr.weights import RTDETR_WEIGHTS
from detrkit.families.weights import Weights


class Writers(NamedTuple):
    """Writers of one family.

    Args:
        published: Writes weights as the authors did, with all that a config says of them.
        hub: Writes a folder for Hugging Face transformers, with a config's preprocessing.
    """

    published: Callable[[str | Path, dict[str, Tensor], Config], None]
    hub: Callable[[str | Path, Weights, Config], None]


HUB_FILES = ("model.safetensors", "config.json", "preprocessor_config.json")
"""Files of a Hugging Face folder."""

_WRITERS = {
    "detr": Writers(write_published, write_hub),
    "rtdetr": Writers(RTDETR_WEIGHTS.write_native, RTDETR_WEIGHTS.write_hub),
    "dfine": Writers(DFINE_WEIGHTS.write_native, DFINE_WEIGHTS.write_hub),
}


def get_writers(family: Family, what: str) -> Writers:
    """Return the writers of a family.

    Args:
        family: The family.
        what: What cannot be done without them, to say so.

    Raises:
        WeightsError: Nobody publishes weights of the family.
    """
    if family.name not in _WRITERS:
        raise family.no_published_layout(what)
    return _WRITERS[family.name]
