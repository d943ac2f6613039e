"""The parts of a two-stage DETR, read off its parameters' names, and how deep each lies."""

from __future__ import annotations

import re

from detrkit.config import ModelConfig
from detrkit.nn.backbones import SMALL_BACKBONES

# Of a parameter's name, with published numbers from 0 where people count layers from 1.
_PARTS = (
    (r"backbone\.0\.body\.(?:conv1|bn1)\.", "backbone.stem"),
    (r"backbone\.0\.body\.layer(\d+)\.", "backbone.stage{}"),
    (r"backbone\.1\.", "position"),
    (r"pyramid\.", "pyramid"),
    (r"token_proj\.|token_norm\.", "selection"),
    (r"token_heads\.class_embed\.", "selection.class_head"),
    (r"token_heads\.bbox_embed\.", "selection.box_head"),
    (r"decoder\.query_pos\.", "queries"),
    (r"decoder\.layers\.(\d+)\.", "decoder.layer{}"),
    (r"decoder\.class_embed\.", "class_head"),
    (r"decoder\.bbox_embed\.", "box_head"),
)


def part_of(name: str) -> str:
    """The innermost part that a parameter belongs to; its module if it is of no part of such a model."""
    for pattern, part in _PARTS:
        match = re.match(pattern, name)
        if match:
            numbers = list(match.groups())
            if part.endswith("layer{}"):
                numbers = [int(number) + 1 for number in numbers]
            return part.format(*numbers)
    return name.partition(".")[0]


def depth_of(name: str, config: ModelConfig) -> int:
    """Layers between a parameter and the detections.

    0 for the heads, then the decoder's layers from the last to the first, which the queries enter, the selection,
    the pyramid, and the backbone by stage.
    """
    outer, _, inner = part_of(name).partition(".")
    number = int(re.sub(r"\D", "", inner) or 0)
    decoder = config.decoder_layers
    stages = 3 if config.backbone in SMALL_BACKBONES else 4
    if outer == "decoder":
        return decoder - number + 1
    if outer == "queries":
        return decoder
    if outer == "selection":
        return decoder + 1
    if outer == "pyramid":
        return decoder + 2
    if outer in ("backbone", "position"):
        return decoder + 2 + stages - number + 1
    return 0
