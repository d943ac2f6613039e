"""Random starting weights of a DETR: as published, and a start that learns faster from nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.families.detr.config import DetrConfig
from detrkit.nn.attention import Attention
from detrkit.nn.position import SinePosition

# How sharply a query looks at its own place at first: the gain of both projections.
_FOCUS = 2.0
# Side of a query's first reference box, and the share of queries and tokens taken for objects at first.
_FIRST_SIDE = 0.24
_FIRST_NO_OBJECT = 2.0


@torch.no_grad()
def initialize(model: Any, config: DetrConfig) -> None:
    """Draw the transformer's weights as the published code does, Xavier uniform; queries as the config says.

    Args:
        model: A :class:`detrkit.families.detr.model.Detr`, changed in place.
        config: Its config.
    """
    for name, parameter in model.transformer.named_parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith(("in_proj_bias", "out_proj.bias")):
            nn.init.zeros_(parameter)
    if config.masks:
        for projection in (model.bbox_attention.q_linear, model.bbox_attention.k_linear):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
    points = spread_points(config.num_queries)
    if config.query_reference:
        side = torch.full_like(points, _FIRST_SIDE)
        model.query_reference.copy_(torch.cat((points, side), dim=1).logit())
        model.bbox_embed.layers[-1].weight.mul_(0.1)
        model.bbox_embed.layers[-1].bias.zero_()
    if config.query_init == "grid":
        position = model.backbone[1]
        assert isinstance(position, SinePosition)
        model.query_embed.weight.copy_(position.encode(points))
        model.class_embed.bias.zero_()
        model.class_embed.bias[-1] = _FIRST_NO_OBJECT
        for layer in model.transformer.decoder.layers:
            look_near(layer.multihead_attn)


@torch.no_grad()
def initialize_aids(model: Any, config: DetrConfig) -> None:
    """Draw the starting weights of a model's aids: each further set of queries spread in its own way."""
    aids = model.aids
    if aids.box_embed is not None:
        nn.init.zeros_(aids.box_embed.layers[-1].weight)  # a noised object begins at its place, like any query
        nn.init.zeros_(aids.box_embed.layers[-1].bias)
    if aids.group_queries is None:
        return
    sets = aids.group_queries.shape[0]
    cell = 1 / math.ceil(math.sqrt(config.num_queries))
    points = spread_points(config.num_queries).expand(sets, -1, -1)
    points = (points + cell * (torch.rand(points.shape) - 0.5)).clamp(0.02, 0.98)
    if aids.group_query_references is not None:
        side = torch.full_like(points, _FIRST_SIDE)
        aids.group_query_references.copy_(torch.cat((points, side), dim=-1).logit())
    if config.query_init == "grid":
        encoded = model.backbone[1].encode(points.flatten(0, 1))
        aids.group_queries.copy_(encoded.view(aids.group_queries.shape))


@torch.no_grad()
def look_near(attention: Attention) -> None:
    """Start a cross-attention so that a query attends to its own place and copies what is there.

    Queries and keys hold position encodings; projecting both alike makes their product largest where they agree.
    Every head gets waves of all lengths and both axes. Values and output pass through unchanged. This is
    initialisation only: the graph is that of any attention.
    """
    dim = attention.out_proj.weight.shape[0]
    pairs = dim // 2  # a sine and the cosine of the same wave must stay together
    heads = attention.num_heads
    dealt = [pair for head in range(heads) for pair in range(head, pairs, heads)]
    order = [2 * pair + part for pair in dealt for part in (0, 1)]
    same = torch.eye(dim)[order] * _FOCUS
    attention.in_proj_weight.copy_(torch.cat((same, same, torch.eye(dim))))
    attention.out_proj.weight.copy_(torch.eye(dim))


def spread_points(count: int) -> Tensor:
    """Return centres (x, y) ``[count, 2]`` of rows of cells that fill the unit square."""
    rows = math.ceil(math.sqrt(count))
    lengths = [count // rows + (row < count % rows) for row in range(rows)]
    return torch.tensor(
        [((x + 0.5) / length, (y + 0.5) / rows) for y, length in enumerate(lengths) for x in range(length)]
    )
