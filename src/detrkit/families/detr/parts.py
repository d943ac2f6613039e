"""The parts of a DETR, read off its parameters' names, and how deep each lies."""

from __future__ import annotations

import re

from detrkit.config import ModelConfig
from detrkit.nn.backbones import SMALL_BACKBONES

_HEADS = ("class_head", "box_head", "decoder.norm")

# Of a parameter's name, with published numbers from 0 where people count layers from 1.
_PARTS = (
    (r"backbone\.0\.body\.(?:conv1|bn1)\.", "backbone.stem"),
    (r"backbone\.0\.body\.layer(\d+)\.", "backbone.stage{}"),
    (r"backbone\.1\.", "position"),
    (r"input_proj\.", "input_proj"),
    (r"transformer\.(encoder|decoder)\.norm\.", "{}.norm"),
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.", "{}.layer{}"),
    (r"query_embed\.|query_reference$", "queries"),
    (r"class_embed\.", "class_head"),
    (r"bbox_embed\.", "box_head"),
)


def part_of(name: str) -> str:
    """The innermost part that a parameter belongs to; its module if it is of no part of a DETR."""
    for pattern, part in _PARTS:
        match = re.match(pattern, name)
        if match:
            pieces = list(match.groups())
            if part.endswith("layer{}"):
                pieces[-1] = int(pieces[-1]) + 1
            return part.format(*pieces)
    return name.partition(".")[0]


def depth_of(name: str, config: ModelConfig) -> int:
    """Layers between a parameter and the detections, as BEiT counts them (arXiv:2106.08254, appendix).

    0 for the heads and the norm before them, then the decoder's layers from the last to the first, which the
    queries enter, the encoder's likewise, the projection of the features with positions, and the backbone by
    stage: 18 in all for ResNet-50.
    """
    part = part_of(name)
    outer, _, inner = part.partition(".")
    number = int(re.sub(r"\D", "", inner) or 0)
    decoder, encoder = config.decoder_layers, config.decoder_layers + config.encoder_layers
    stages = 3 if config.backbone in SMALL_BACKBONES else 4
    if part in _HEADS:
        return 0
    if outer == "decoder":
        return decoder - number + 1
    if outer == "queries":
        return decoder
    if outer == "encoder":
        return encoder - number + 1 if number else decoder + 1
    if outer in ("input_proj", "position"):
        return encoder + 1
    if outer == "backbone":
        return encoder + 1 + stages - number + 1
    return 0
