"""Classic DETR (arXiv:2005.12872, figure 2). Parameters carry the published checkpoints' names.

Shapes: B images, H x W pixels, h x w feature map, D features, Q queries, L decoder layers, S labels of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.config import AidsConfig
from detrkit.errors import ConfigError
from detrkit.families.detr.aids import DetrAids, Queries, take_apart
from detrkit.families.detr.config import DetrConfig
from detrkit.families.detr.initialization import initialize, initialize_aids
from detrkit.families.detr.panoptic import AttentionMaps, DetrMasks, MaskGraph, MaskHead
from detrkit.families.parts import PartRule, backbone_rules
from detrkit.nn.backbones import build_backbone
from detrkit.nn.backbones.resnet import ResNetBackbone, fold_norms
from detrkit.nn.mlp import MLP
from detrkit.nn.position import LearnedPosition, SinePosition
from detrkit.nn.selection import locate_cells
from detrkit.nn.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer
from detrkit.types import DenseOutputs, Objects, Outputs


class Transformer(nn.Module):
    """Encoder and decoder under one name, as the published checkpoints have them."""

    def __init__(self, encoder: Encoder, decoder: Decoder):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder


class Detr(nn.Module):
    """A backbone, a transformer, object queries, and a class and a box head.

    Args:
        backbone: Gives features ``[B, C, h, w]`` and their padding mask.
        position: Gives position encodings of a feature map as tokens.
        transformer: Encoder and decoder.
        hidden_dim: Features D.
        num_queries: Queries Q, the most objects an image can have.
        num_labels: Labels S of the head; the head has S + 1 rows, the last for no-object.
        position_at_input: Positions are added to the encoder's input too, and queries start as themselves.
        query_reference: Boxes are offsets from a learned reference box of each query.
        num_heads: Attention maps of each query for its mask; 0 for a model without masks.
        part_rules: How its parts are named.

    Attributes:
        aids: Further queries in training; see :func:`add_aids`.
        reads_tokens: In training, the heads also read the encoder's tokens.
    """

    def __init__(
        self,
        backbone: ResNetBackbone,
        position: nn.Module,
        transformer: Transformer,
        *,
        hidden_dim: int,
        num_queries: int,
        num_labels: int,
        position_at_input: bool = False,
        query_reference: bool = False,
        num_heads: int = 0,
        part_rules: tuple[PartRule, ...] = (),
    ):
        super().__init__()
        self.part_rules = part_rules
        self.transformer = transformer
        self.class_embed = nn.Linear(hidden_dim, num_labels + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, num_layers=3)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj = nn.Conv2d(backbone.channels[-1], hidden_dim, kernel_size=1)
        self.backbone = nn.ModuleList((backbone, position))
        self.position_at_input = position_at_input
        self.reads_tokens = False
        self.aids: DetrAids | None = None
        self.query_reference = nn.Parameter(torch.zeros(num_queries, 4)) if query_reference else None
        self.bbox_attention: AttentionMaps | None = None
        self.mask_head: MaskHead | None = None
        if num_heads:
            self.bbox_attention = AttentionMaps(hidden_dim, num_heads)
            self.mask_head = MaskHead(hidden_dim, num_heads, backbone.channels[-2:-5:-1])

    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, objects: Objects | None = None
    ) -> Outputs:
        """Detect.

        Args:
            images: Normalised float ``[B, 3, H, W]``, zero on padding.
            padding_mask: bool ``[B, H, W]``, True = padding; None = no padding anywhere, which is faster.
            objects: What lies in the images, for aids of training that begin there; ignored in detection.

        Returns:
            Logits ``[L, B, Q, S + 1]`` and boxes cxcywh ``[L, B, Q, 4]``, 0 to 1 of the image without padding.
        """
        backbone: Any = self.backbone[0]
        position = self.backbone[1]
        if self.mask_head is None:
            levels = [backbone(images, padding_mask)]
        else:
            levels = backbone.pyramid(images, padding_mask, 1 + self.mask_head.steps)
        features, feature_mask = levels[-1]
        projected = self.input_proj(features)
        tokens = projected.flatten(2).transpose(1, 2)
        positions = position(features, feature_mask).to(tokens.dtype)
        attn_mask = None if feature_mask is None else ~feature_mask.flatten(1)[:, None, None, :]
        if self.position_at_input:
            tokens = tokens + positions
        memory = self.transformer.encoder(tokens, positions, attn_mask)
        positions_of_queries = self.query_embed.weight.to(tokens.dtype).expand(images.shape[0], -1, -1)
        queries = Queries(positions_of_queries, None, self.query_reference)
        further = None
        if self.training and self.aids is not None:
            further = self.aids(queries, position, objects)
            queries = further.queries
        query_mask = None if further is None else further.mask
        starts = self._starts(queries.positions)
        if queries.contents is not None:
            starts = starts + queries.contents
        decoded = self.transformer.decoder(starts, queries.positions, memory, positions, attn_mask, query_mask)
        offsets = self.bbox_embed(decoded).float()
        if queries.references is not None:
            offsets = offsets + queries.references
        logits, boxes = self.class_embed(decoded).float(), offsets.sigmoid()
        dense, groups, denoised = None, None, None
        if further is not None:
            logits, boxes, groups, denoised = take_apart(logits, boxes, len(self.query_embed.weight), further)
        if self.training and self.reads_tokens:
            dense = self._read_tokens(memory, features.shape[-2:], feature_mask)
        masks = None
        if self.mask_head is not None:
            assert self.bbox_attention is not None
            own = decoded[-1][:, : len(self.query_embed.weight)]
            size_hw = (images.shape[-2], images.shape[-1])
            heads = (self.bbox_attention, self.mask_head)
            how = {"exact": backbone.exact_padding, "rests": self.training and not self.mask_head.training}
            masks = DetrMasks(*heads, own, memory, projected, levels, padding_mask, size_hw, **how)
        return Outputs(logits, boxes, dense, groups, denoised, masks=masks)

    def mask_graph(self) -> MaskGraph:
        """Return what makes masks of :meth:`DetrMasks.parts`, to be exported by itself."""
        assert self.bbox_attention is not None
        assert self.mask_head is not None
        return MaskGraph(self.bbox_attention, self.mask_head)

    def _starts(self, positions: Tensor) -> Tensor:
        return positions if self.position_at_input else torch.zeros_like(positions)

    def keep(self, decoder_layers: int, queries: Sequence[int]) -> None:
        """Keep the first decoder layers, whose outputs the heads are trained on too, and some queries by number.

        In place, for detection.
        """
        decoder, rows = self.transformer.decoder, torch.tensor(queries)
        decoder.layers = decoder.layers[:decoder_layers]
        kept = self.query_embed.weight.detach()[rows]
        self.query_embed = nn.Embedding(len(queries), kept.shape[1], _weight=kept)
        if self.query_reference is not None:
            self.query_reference = nn.Parameter(self.query_reference.detach()[rows])

    def prepare_inference(self) -> None:
        """Fold what no image changes, and leave out all heads but the last, in place: for detection only."""
        fold_norms(self.backbone[0])  # type: ignore[arg-type]
        positions = self.query_embed.weight[None]
        self.transformer.decoder.settle(self._starts(positions), positions)

    def _read_tokens(self, memory: Tensor, shape_hw: torch.Size, feature_mask: Tensor | None) -> DenseOutputs:
        """Read every image token by the heads."""
        cells = locate_cells([(shape_hw[0], shape_hw[1])], [feature_mask], memory.device)
        return DenseOutputs(
            logits=self.class_embed(memory).float(),
            boxes_cxcywh=self.bbox_embed(memory).float().sigmoid(),
            points=cells.points,
            valid=cells.valid,
        )


def build_detr(config: DetrConfig, num_labels: int) -> Detr:
    """Build a DETR with random weights, drawn as the published code draws them: Xavier in the transformer."""
    dim = config.hidden_dim
    layer = (dim, config.num_heads, config.ffn_dim, config.dropout, config.pre_norm)
    encoder = Encoder([EncoderLayer(*layer) for _ in range(config.encoder_layers)], dim, config.pre_norm)
    decoder = Decoder([DecoderLayer(*layer) for _ in range(config.decoder_layers)], dim, config.norm_between)
    for block in (*encoder.layers, *decoder.layers):
        block.activation = config.activation
    position: nn.Module = LearnedPosition(dim)
    if config.position == "sine":
        position = SinePosition(dim, config.position_temperature, config.position_scale)
    backbone = build_backbone(config)
    if not isinstance(backbone, ResNetBackbone):
        raise ConfigError(
            f"model.backbone is {config.backbone}, but DETR has a ResNet: resnet50 or another of them"
        )
    model = Detr(
        backbone,
        position,
        Transformer(encoder, decoder),
        hidden_dim=dim,
        num_queries=config.num_queries,
        num_labels=num_labels,
        position_at_input=config.position_at_input,
        query_reference=config.query_reference,
        num_heads=config.num_heads if config.masks else 0,
        part_rules=_part_rules(config, len(backbone.channels)),
    )
    initialize(model, config)
    return model


def _part_rules(config: DetrConfig, stages: int) -> tuple[PartRule, ...]:
    """Return how the parts are named: 18 layers deep in all for ResNet-50."""
    decoder = config.decoder_layers
    encoder = decoder + config.encoder_layers
    return (
        *backbone_rules(stages, encoder + 2),
        PartRule(r"backbone\.1\.", "position", encoder + 1),
        PartRule(r"input_proj\.", "input_proj", encoder + 1),
        PartRule(r"transformer\.encoder\.norm\.", "encoder.norm", decoder + 1),
        PartRule(r"transformer\.encoder\.layers\.(\d+)\.", "encoder.layer{}", encoder, first=1),
        PartRule(r"transformer\.decoder\.norm\.", "decoder.norm"),
        PartRule(r"transformer\.decoder\.layers\.(\d+)\.", "decoder.layer{}", decoder, first=1),
        PartRule(r"query_embed\.|query_reference$", "queries", decoder),
        PartRule(r"class_embed\.", "class_head"),
        PartRule(r"bbox_embed\.", "box_head"),
        PartRule(r"mask_head\.|bbox_attention\.", "mask_head"),
    )


def add_aids(model: Detr, config: DetrConfig, aids: AidsConfig) -> None:
    """Give a model, in place, what it has in training only; its own weights stay as they are."""
    model.reads_tokens = aids.dense != "none"
    if aids.groups > 1 or aids.denoising:
        num_labels = model.class_embed.out_features - 1
        has_references = model.query_reference is not None
        model.aids = DetrAids(aids, config.hidden_dim, config.num_queries, num_labels, has_references)
        initialize_aids(model, config)
