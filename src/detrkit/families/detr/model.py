"""Classic DETR (arXiv:2005.12872, figure 2). Parameters carry the published checkpoints' names.

Shapes: B images, H x W pixels, h x w feature map, D features, Q queries, L decoder layers, S label slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detrkit.config import ModelConfig
from detrkit.nn.backbones import build_backbone
from detrkit.nn.mlp import MLP
from detrkit.nn.position import LearnedPosition, SinePosition, sine_features
from detrkit.nn.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer
from detrkit.types import Outputs


class Transformer(nn.Module):
    """Encoder and decoder under one name, as the published checkpoints have them."""

    def __init__(self, encoder: Encoder, decoder: Decoder):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder


class Detr(nn.Module):
    """A backbone, a transformer, object queries, and a class and a box head.

    Args:
        backbone: Gives features ``[B, C, h, w]`` and their padding mask; has ``num_channels``.
        position: Gives position encodings of a feature map as tokens.
        transformer: Encoder and decoder.
        hidden_dim: Features D.
        num_queries: Queries Q, the most objects an image can have.
        num_slots: Label slots S; the head has S + 1 rows, the last for no-object.
    """

    def __init__(
        self,
        backbone: nn.Module,
        position: nn.Module,
        transformer: Transformer,
        *,
        hidden_dim: int,
        num_queries: int,
        num_slots: int,
    ):
        super().__init__()
        channels = backbone.num_channels
        assert isinstance(channels, int)
        self.transformer = transformer
        self.class_embed = nn.Linear(hidden_dim, num_slots + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, num_layers=3)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj = nn.Conv2d(channels, hidden_dim, kernel_size=1)
        self.backbone = nn.ModuleList((backbone, position))

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> Outputs:
        """Detect.

        Args:
            images: Normalised float ``[B, 3, H, W]``, zero on padding.
            padding_mask: bool ``[B, H, W]``, True = padding; None = no padding anywhere, which is faster.

        Returns:
            Logits ``[L, B, Q, S + 1]`` and boxes cxcywh ``[L, B, Q, 4]``, 0 to 1 of the image without padding.
        """
        backbone, position = self.backbone
        features, feature_mask = backbone(images, padding_mask)
        tokens = self.input_proj(features).flatten(2).transpose(1, 2)
        positions = position(features, feature_mask).to(tokens.dtype)
        attn_mask = None if feature_mask is None else ~feature_mask.flatten(1)[:, None, None, :]
        memory = self.transformer.encoder(tokens, positions, attn_mask)
        queries = self.query_embed.weight.to(tokens.dtype).expand(images.shape[0], -1, -1)
        decoded = self.transformer.decoder(queries, memory, positions, attn_mask)
        return Outputs(
            logits=self.class_embed(decoded).float(), boxes_cxcywh=self.bbox_embed(decoded).float().sigmoid()
        )


def build_detr(config: ModelConfig, num_slots: int) -> Detr:
    """A DETR with random weights, drawn as the published code draws them: Xavier in the transformer."""
    dim = config.hidden_dim
    layer = (dim, config.num_heads, config.ffn_dim, config.dropout, config.pre_norm)
    encoder = Encoder([EncoderLayer(*layer) for _ in range(config.encoder_layers)], dim, config.pre_norm)
    decoder = Decoder([DecoderLayer(*layer) for _ in range(config.decoder_layers)], dim)
    position: nn.Module = (
        SinePosition(dim, config.position_temperature) if config.position == "sine" else LearnedPosition(dim)
    )
    model = Detr(
        build_backbone(config),
        position,
        Transformer(encoder, decoder),
        hidden_dim=dim,
        num_queries=config.num_queries,
        num_slots=num_slots,
    )
    for name, parameter in model.transformer.named_parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith(("in_proj_bias", "out_proj.bias")):
            nn.init.zeros_(parameter)
    if config.query_init == "grid":
        with torch.no_grad():
            model.query_embed.weight.copy_(_grid_queries(config.num_queries, dim, config.position_temperature))
    return model


def _grid_queries(count: int, dim: int, temperature: float) -> Tensor:
    """Sine encodings ``[count, dim]`` of points spread over the image.

    A query that equals the encoding of a place attends to it from the first step, instead of having to find
    one; this is initialisation only and changes nothing in the graph.
    """
    # a sequence that fills the square evenly for any count (R2, from the plastic number)
    steps = torch.arange(1, count + 1, dtype=torch.float64)
    y = (0.5 + steps * 0.7548776662466927) % 1.0
    x = (0.5 + steps * 0.5698402909980532) % 1.0
    turn = 2 * torch.pi
    half = dim // 2
    return torch.cat((sine_features(y * turn, half, temperature), sine_features(x * turn, half, temperature)), -1)
