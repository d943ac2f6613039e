"""A two-stage DETR: the encoder proposes boxes, the best become queries, a decoder refines and chooses among them.

Two-stage selection is Deformable DETR's (arXiv:2010.04159, A.4) in the shape that RT-DETR gave it
(arXiv:2304.08069): self-attention on the coarsest map only, maps mixed by convolutions, deformable attention in
the decoder. Like the classic model it scores by a softmax with no-object, and needs no suppression.

Shapes: B images, H x W pixels, M tokens of all levels, D features, Q queries, L layers, S labels of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.config import AidsConfig, ModelConfig
from detrkit.errors import ConfigError
from detrkit.families.parts import PartRule, backbone_rules
from detrkit.families.two_stage.config import TwoStageConfig
from detrkit.losses.scoring import SOFTMAX
from detrkit.nn.backbones import build_backbone
from detrkit.nn.backbones.resnet import ResNetBackbone, fold_norm, fold_norms
from detrkit.nn.box_decoder import BoxDecoder, BoxDecoderLayer, Memory
from detrkit.nn.deformable import valid_shares
from detrkit.nn.denoising import NoisedObjects, block_mask, noise_objects
from detrkit.nn.mlp import MLP
from detrkit.nn.position import SinePosition
from detrkit.nn.pyramid import ConvNorm, FeaturePyramid
from detrkit.nn.selection import Cells, best_tokens, hide_missing, locate_cells, take_tokens
from detrkit.nn.transformer import Encoder, EncoderLayer
from detrkit.types import NO_QUERY, DenoisedOutputs, DenseOutputs, Objects, Outputs

SCORING = SOFTMAX
# The logit of no-object at first, against 0 of every class: most tokens hold none.
_FIRST_NO_OBJECT = 2.0


class TokenHeads(nn.Module):
    """What a token says: a class, and a box as an offset from its anchor.

    Args:
        dim: Features D.
        num_labels: Labels S of the head.
    """

    def __init__(self, dim: int, num_labels: int):
        super().__init__()
        self.class_embed = nn.Linear(dim, num_labels + 1)
        self.bbox_embed = MLP(dim, dim, 4, num_layers=3)
        start_heads(self.class_embed, self.bbox_embed)

    def forward(self, tokens: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, M, S + 1]``, and boxes before the sigmoid ``[B, M, 4]``, both float32."""
        offsets = self.bbox_embed(tokens).float()
        return self.class_embed(tokens).float(), offsets + anchors.logit(eps=1e-4)


class TwoStageAids(nn.Module):
    """What training adds: heads that many tokens of an object learn from, and classes of noised objects."""

    def __init__(self, config: AidsConfig, dim: int, num_labels: int):
        super().__init__()
        self.config = config
        self.token_heads = TokenHeads(dim, num_labels) if config.dense != "none" else None
        self.num_labels = num_labels
        self.label_embed = nn.Embedding(num_labels, dim) if config.denoising else None

    def noise(self, objects: Objects | None) -> NoisedObjects | None:
        """Noised objects to make queries from, if there shall be any."""
        if self.label_embed is None or objects is None:
            return None
        config = self.config
        return noise_objects(
            objects, config.denoising, self.num_labels, label_noise=config.label_noise, box_noise=config.box_noise
        )


class TwoStageDetr(nn.Module):
    """Backbone, feature pyramid, selection of queries, decoder.

    Args:
        backbone: Gives maps of several strides.
        levels: Of the backbone's maps, how many are read.
        pyramid: Mixes them, and may add coarser ones.
        position: Position encodings, for the pyramid's attention.
        decoder: Refines boxes.
        dim: Features D.
        num_queries: Queries Q, the most objects an image can have.
        num_labels: Labels S of the head; heads have S + 1 rows, the last for no-object.
        part_rules: How its parts are named.

    Attributes:
        aids: Parts of training; see :func:`add_aids`.
    """

    def __init__(
        self,
        backbone: ResNetBackbone,
        levels: int,
        pyramid: FeaturePyramid,
        position: nn.Module,
        decoder: BoxDecoder,
        *,
        dim: int,
        num_queries: int,
        num_labels: int,
        part_rules: tuple[PartRule, ...] = (),
    ):
        super().__init__()
        self.part_rules = part_rules
        self.backbone = nn.ModuleList((backbone, position))
        self.levels = levels
        self.pyramid = pyramid
        self.token_proj = nn.Linear(dim, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.token_heads = TokenHeads(dim, num_labels)
        self.decoder = decoder
        self.num_queries = num_queries
        self.num_labels = num_labels
        self.aids: TwoStageAids | None = None

    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, objects: Objects | None = None
    ) -> Outputs:
        """Detect; as :meth:`detrkit.families.detr.model.Detr.forward`.

        In training the selected tokens' own logits and boxes come first, as a layer more.
        """
        memory, cells = self._encode(images, padding_mask)
        features = self.token_norm(self.token_proj(memory.tokens))
        logits, offsets = self.token_heads(features, cells.anchors)
        chosen, real = best_tokens(SCORING.scores(logits).amax(-1), cells.valid, self.num_queries)
        own_logits, own_offsets = take_tokens(logits, chosen), take_tokens(offsets, chosen)
        queries, references = take_tokens(features, chosen).detach(), own_offsets.detach()
        aids = self.aids if self.training else None
        noised = None if aids is None else aids.noise(objects)
        if noised is not None and aids is not None and aids.label_embed is not None:
            queries = torch.cat((queries, aids.label_embed(noised.logit_index).to(queries.dtype)), dim=1)
            references = torch.cat((references, noised.boxes_cxcywh.logit(eps=1e-4)), dim=1)
        # known on the host: an image may have fewer tokens than there are queries
        lacking = memory.padding_mask is not None or features.shape[1] < self.num_queries
        query_mask = _query_mask(real, noised) if lacking or noised is not None else None
        found_logits, found_boxes = self.decoder(queries, references, memory, query_mask)
        denoised = None
        if noised is not None and aids is not None:
            answers = (found_logits[:, :, self.num_queries :], found_boxes[:, :, self.num_queries :])
            denoised = DenoisedOutputs(*answers, noised.objects, aids.config.denoising)
        found_logits, found_boxes = found_logits[:, :, : self.num_queries], found_boxes[:, :, : self.num_queries]
        if self.training:
            found_logits = torch.cat((own_logits[None], found_logits))
            found_boxes = torch.cat((own_offsets.sigmoid()[None], found_boxes))
        if lacking:
            nothing = SCORING.nothing(found_logits)
            found_logits, found_boxes = hide_missing(found_logits, found_boxes, real, nothing)
        dense = None
        if aids is not None and aids.token_heads is not None:
            dense = _read_tokens(aids.token_heads, features, cells)
        return Outputs(found_logits, found_boxes, dense, denoised=denoised, proposes=self.training)

    def keep(self, decoder_layers: int, queries: Sequence[int]) -> None:
        """Keep the first decoder layers, whose heads are trained, and as many queries, in place: for detection."""
        decoder = self.decoder
        for name in ("layers", "class_embed", "bbox_embed"):
            setattr(decoder, name, getattr(decoder, name)[:decoder_layers])
        self.num_queries = len(queries)

    def prepare_inference(self) -> None:
        """Fold what no image changes, and leave out all class heads but the last, in place: for detection only."""
        fold_norms(self.backbone[0])  # type: ignore[arg-type]
        for module in self.pyramid.modules():
            if isinstance(module, ConvNorm):
                fold_norm(module, "conv", "norm")
        self.decoder.final_only = True

    def _encode(self, images: Tensor, padding_mask: Tensor | None) -> tuple[Memory, Cells]:
        """Encode the image as tokens of all levels, and locate them."""
        backbone: Any = self.backbone[0]
        maps, masks = zip(*backbone.pyramid(images, padding_mask, self.levels), strict=True)
        mixed, mixed_masks = self.pyramid(maps, masks, self.backbone[1])
        shapes_hw = [(x.shape[-2], x.shape[-1]) for x in mixed]  # no int(): it would fix the size of an export
        cells = locate_cells(shapes_hw, mixed_masks, images.device)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in mixed], dim=1)
        return _memory(tokens, shapes_hw, mixed_masks), cells


def _query_mask(real: Tensor, noised: NoisedObjects | None) -> Tensor:
    """Return which queries may look at which: the model's own at each other, a copy's objects at each other."""
    blocks, exists = torch.zeros_like(real[0], dtype=torch.int64), real
    if noised is not None:
        blocks = torch.cat((blocks, noised.blocks + 1))
        exists = torch.cat((real, noised.objects != NO_QUERY), dim=1)
    return block_mask(blocks, exists)


def _read_tokens(heads: TokenHeads, features: Tensor, cells: Cells) -> DenseOutputs:
    logits, offsets = heads(features, cells.anchors)
    return DenseOutputs(logits, offsets.sigmoid(), cells.points, cells.valid)


def _memory(tokens: Tensor, shapes_hw: list[tuple[int, int]], masks: list[Tensor | None]) -> Memory:
    known = [mask.flatten(1) for mask in masks if mask is not None]
    if not known:
        return Memory(tokens, shapes_hw, None, None)
    padding_mask = torch.cat(known, dim=1)
    return Memory(tokens, shapes_hw, padding_mask, valid_shares(padding_mask, shapes_hw))


@torch.no_grad()
def start_heads(class_embed: nn.Linear, bbox_embed: MLP) -> None:
    """Start heads so that they find no objects, and leave boxes where they are."""
    last = bbox_embed.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    nn.init.zeros_(class_embed.bias)
    class_embed.bias[-1] = _FIRST_NO_OBJECT


def build_two_stage(config: TwoStageConfig, num_labels: int) -> TwoStageDetr:
    """Build a two-stage DETR with random weights."""
    dim = config.hidden_dim
    backbone = build_backbone(config)
    norm = "group" if config.backbone_norm in ("auto", "group") else "batch"
    channels = backbone.channels[-2:] if config.levels > 1 else backbone.channels[-1:]
    encoder = None
    if config.encoder_layers:
        layer = (dim, config.num_heads, config.ffn_dim, config.dropout, config.pre_norm)
        encoder = Encoder([EncoderLayer(*layer) for _ in range(config.encoder_layers)], dim, config.pre_norm)
    pyramid = FeaturePyramid(channels, dim, encoder, extra_levels=config.levels - len(channels), norm=norm)
    layers = [
        BoxDecoderLayer(dim, config.num_heads, config.ffn_dim, config.dropout, config.levels)
        for _ in range(config.decoder_layers)
    ]
    decoder = BoxDecoder(layers, dim, num_labels)
    for class_head, box_head in zip(decoder.class_embed, decoder.bbox_embed, strict=True):
        assert isinstance(class_head, nn.Linear)
        assert isinstance(box_head, MLP)
        start_heads(class_head, box_head)
    return TwoStageDetr(
        backbone,
        len(channels),
        pyramid,
        SinePosition(dim, config.position_temperature, config.position_scale),
        decoder,
        dim=dim,
        num_queries=config.num_queries,
        num_labels=num_labels,
        part_rules=_part_rules(config, len(backbone.channels)),
    )


def _part_rules(config: TwoStageConfig, stages: int) -> tuple[PartRule, ...]:
    decoder = config.decoder_layers
    return (
        *backbone_rules(stages, decoder + 3),
        PartRule(r"pyramid\.", "pyramid", decoder + 2),
        PartRule(r"token_proj\.|token_norm\.", "selection", decoder + 1),
        PartRule(r"token_heads\.class_embed\.", "selection.class_head", decoder + 1),
        PartRule(r"token_heads\.bbox_embed\.", "selection.box_head", decoder + 1),
        PartRule(r"decoder\.query_pos\.", "queries", decoder),
        PartRule(r"decoder\.layers\.(\d+)\.", "decoder.layer{}", decoder, first=1),
        PartRule(r"decoder\.class_embed\.", "class_head"),
        PartRule(r"decoder\.bbox_embed\.", "box_head"),
    )


def add_aids(model: TwoStageDetr, _config: ModelConfig, aids: AidsConfig) -> None:
    """Give a model, in place, what it has in training only; its own weights stay as they are.

    Raises:
        ConfigError: The aids are of learned queries, which this family does not have.
    """
    if aids.groups > 1:
        raise ConfigError(
            f"aids.groups is {aids.groups}, but the queries of the two_stage family are not learned; set it to 1"
        )
    if aids.dense != "none" or aids.denoising:
        dim = model.token_proj.out_features
        model.aids = TwoStageAids(aids, dim, model.num_labels)
