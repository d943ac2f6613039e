"""RT-DETRv2 (arXiv:2407.17140): the two-stage DETR with a hybrid encoder, scored by a sigmoid of each class.

Shapes as in :mod:`detrkit.families.two_stage.model`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from detrkit.families.parts import PartRule
from detrkit.families.rtdetr.config import HybridConfig, RTDetrConfig
from detrkit.families.two_stage.model import TwoStageDetr, start_heads, two_stage_rules
from detrkit.losses.scoring import SigmoidScoring
from detrkit.nn.backbones import build_backbone
from detrkit.nn.backbones.hgnet import HgNetBackbone
from detrkit.nn.backbones.resnet import ResNetBackbone
from detrkit.nn.box_decoder import BoxDecoder, BoxDecoderLayer
from detrkit.nn.hybrid import CspRep, HybridEncoder
from detrkit.nn.mlp import MLP
from detrkit.nn.position import GridPosition
from detrkit.nn.pyramid import ConvNorm
from detrkit.nn.transformer import Encoder, EncoderLayer

SCORING = SigmoidScoring(alpha=0.75, match_alpha=0.25)


def rank_pairs(
    logits: Tensor, boxes_cxcywh: Tensor, logit_index: Tensor, scoring: SigmoidScoring = SCORING
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, class ids and boxes of the best pairs of query and class, as many as there are queries.

    As :func:`detrkit.families.postprocess.rank_detections`, but a query may be of several classes, as published.
    """
    scores = scoring.scores(logits).index_select(-1, logit_index)
    best, pairs = scores.flatten(1).topk(scores.shape[1])
    query = pairs // logit_index.shape[0]
    return best, pairs % logit_index.shape[0], boxes_cxcywh.gather(1, query[..., None].expand(-1, -1, 4))


def hybrid_norm(config: HybridConfig) -> str:
    """Return the norm of everything but the backbone."""
    return "group" if config.backbone_norm == "group" else "batch"


def build_attention(config: HybridConfig) -> Encoder | None:
    """Build the attention inside the coarsest level."""
    dim = config.encoder_dim
    layers = [
        EncoderLayer(dim, config.num_heads, config.encoder_ffn_dim, config.dropout, config.pre_norm)
        for _ in range(config.encoder_layers)
    ]
    for layer in layers:
        layer.activation = "gelu"
    return Encoder(layers, dim) if layers else None


def build_layers(config: HybridConfig, *, gated: bool = False) -> list[BoxDecoderLayer]:
    """Build the layers of the decoder."""
    sizes = config.hidden_dim, config.num_heads, config.ffn_dim, config.dropout, config.feature_levels
    how = {"discrete": config.sampling == "discrete", "gated": gated}
    return [BoxDecoderLayer(*sizes, config.points, **how) for _ in range(config.decoder_layers)]


def build_rtdetr(config: RTDetrConfig, num_labels: int) -> TwoStageDetr:
    """Build an RT-DETRv2 with random weights."""
    norm, dim, inner = hybrid_norm(config), config.encoder_dim, config.hidden_dim
    fuse = partial(CspRep, 2 * dim, dim, config.fusion_blocks, int(dim * config.expansion), norm)
    reduce = partial(ConvNorm, dim, dim, 3, 2, norm=norm, act="silu")
    backbone = build_backbone(config)
    levels = min(config.feature_levels, len(backbone.channels) - 1)
    channels, extra = backbone.channels[-levels:], config.feature_levels - levels
    encoder = HybridEncoder(
        channels, dim, build_attention(config), fuse, reduce, extra_levels=extra, norm=norm, out_dim=inner
    )
    decoder = BoxDecoder(build_layers(config), inner, num_labels, look_twice=True, eval_layers=config.eval_layers)
    return assemble(config, num_labels, backbone, levels, encoder, decoder)


def assemble(
    config: HybridConfig,
    num_labels: int,
    backbone: ResNetBackbone | HgNetBackbone,
    levels: int,
    encoder: HybridEncoder,
    decoder: BoxDecoder,
) -> TwoStageDetr:
    """Put the parts of a real-time DETR together, its heads as they are at first."""
    for class_head, box_head in zip(decoder.class_embed, decoder.bbox_embed, strict=True):
        assert isinstance(class_head, nn.Linear)
        assert isinstance(box_head, MLP)
        start_heads(class_head, box_head, SCORING)
    label_embed = nn.Embedding(num_labels + 1, config.hidden_dim, padding_idx=num_labels)
    with torch.no_grad():
        nn.init.normal_(label_embed.weight[:-1])
    return TwoStageDetr(
        backbone,
        levels,
        encoder,
        GridPosition(config.encoder_dim, config.position_temperature),
        decoder,
        dim=config.hidden_dim,
        num_queries=config.num_queries,
        num_labels=num_labels,
        scoring=SCORING,
        label_embed=label_embed,
        sees_edges=False,
        sees_padding=config.padding == "published",
        part_rules=(*two_stage_rules(config.decoder_layers, 4), PartRule(r"label_embed\.", "queries")),
    )
