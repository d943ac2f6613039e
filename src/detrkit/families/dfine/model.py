"""D-FINE (arXiv:2410.13842): RT-DETR with HGNetV2, other fusions, and boxes refined as distributions."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from detrkit.families.dfine.config import DFineConfig
from detrkit.families.parts import PartRule
from detrkit.families.rtdetr.model import SCORING, assemble, build_attention, build_layers, hybrid_norm
from detrkit.families.two_stage.model import TwoStageDetr
from detrkit.nn.backbones import build_backbone
from detrkit.nn.distribution import DistributionDecoder
from detrkit.nn.hybrid import HybridEncoder, RepElan
from detrkit.nn.pyramid import LightLayer


def build_dfine(config: DFineConfig, num_labels: int) -> TwoStageDetr:
    """Build a D-FINE with random weights."""
    norm, dim, inner = hybrid_norm(config), config.encoder_dim, config.hidden_dim
    hidden = round(config.expansion * dim // 2)
    fuse = partial(RepElan, dim, hidden, config.fusion_blocks, norm)
    reduce = partial(LightLayer, dim, dim, 3, 2, norm=norm, act="")
    backbone = build_backbone(config)
    levels = min(config.feature_levels, len(backbone.channels) - 1)
    encoder = HybridEncoder(
        backbone.channels[-levels:],
        dim,
        build_attention(config),
        fuse,
        reduce,
        extra_levels=config.feature_levels - levels,
        norm=norm,
        lateral_act="",
        out_dim=inner if inner != dim else None,
    )
    layers, columns = build_layers(config, gated=True), num_labels + SCORING.extra_columns
    decoder = DistributionDecoder(layers, inner, columns, scale=config.edge_scale, eval_layers=config.eval_layers)
    last = decoder.first_bbox_embed.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    model = assemble(config, num_labels, backbone, levels, encoder, decoder)
    model.part_rules += (PartRule(r"decoder\.(?:quality|first_bbox_embed)\.", "box_head"),)
    return model
