"""A two-stage DETR: the encoder proposes boxes, the best become queries, a decoder refines and chooses among them.

Two-stage selection is Deformable DETR's (arXiv:2010.04159, A.4) in the shape that RT-DETR gave it
(arXiv:2304.08069): self-attention on the coarsest map only, maps mixed by convolutions, deformable attention in
the decoder. Like the classic model it scores by a softmax with no-object, and needs no suppression.

Shapes: B images, H x W pixels, M tokens of all levels, D features, Q queries, L layers, S labels of the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.config import AidsConfig, ModelConfig
from detrkit.errors import ConfigError
from detrkit.families.detr.panoptic import DetrMasks, Level, MaskGraph, MaskHead, Places, ScoreMaps
from detrkit.families.parts import PartRule, backbone_rules
from detrkit.families.two_stage.config import TwoStageConfig
from detrkit.losses.scoring import SOFTMAX, ClassScoring
from detrkit.nn.attention import QueryMask
from detrkit.nn.backbones import build_backbone
from detrkit.nn.backbones.hgnet import HgNetBackbone
from detrkit.nn.backbones.resnet import ResNetBackbone, fold_norm, fold_norms
from detrkit.nn.box_decoder import BoxDecoder, BoxDecoderLayer, Decoded, Memory
from detrkit.nn.deformable import valid_shares
from detrkit.nn.denoising import NoisedObjects, block_mask, noise_objects
from detrkit.nn.hybrid import HybridEncoder, RepBlock
from detrkit.nn.mlp import MLP
from detrkit.nn.position import SinePosition
from detrkit.nn.pyramid import ConvNorm, FeaturePyramid
from detrkit.nn.selection import Cells, best_tokens, hide_missing, locate_cells, take_tokens
from detrkit.nn.transformer import Encoder, EncoderLayer
from detrkit.types import NO_QUERY, DenoisedOutputs, DenseOutputs, EdgeOutputs, Objects, Outputs

# Queries of noised objects that an image has at most, if it has no more objects (arXiv:2304.08069).
_MOST_NOISED = 100
# Anchors with a centre or side within this share of the image's edges are none (arXiv:2010.04159, its code). Nor
# are those at it, however a program rounds: of 50 cells, one's centre lies at 0.99, which OpenVINO let in.
EDGE = 0.01 + 1e-6
# The logit of no-object at first, against 0 of every class: most tokens hold none.
_FIRST_NO_OBJECT = 2.0


class TokenHeads(nn.Module):
    """What a token says: a class, and a box as an offset from its anchor.

    Args:
        dim: Features D.
        num_labels: Labels S of the head.
        scoring: What the logits mean.
    """

    def __init__(self, dim: int, num_labels: int, scoring: ClassScoring = SOFTMAX):
        super().__init__()
        self.class_embed = nn.Linear(dim, num_labels + scoring.extra_columns)
        self.bbox_embed = MLP(dim, dim, 4, num_layers=3)
        start_heads(self.class_embed, self.bbox_embed, scoring)

    def forward(self, tokens: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, M, C]``, and boxes before the sigmoid ``[B, M, 4]``, both float32."""
        return self.class_embed(tokens).float(), self.boxes(tokens, anchors)

    def boxes(self, tokens: Tensor, anchors: Tensor) -> Tensor:
        """Return boxes before the sigmoid alone, ``[B, M, 4]`` float32."""
        return self.bbox_embed(tokens).float() + anchors.logit(eps=1e-4)  # type: ignore[no-any-return]


class TwoStageAids(nn.Module):
    """What training adds: heads that many tokens of an object learn from, and classes of noised objects."""

    def __init__(self, config: AidsConfig, model: TwoStageDetr):
        super().__init__()
        self.config = config
        dim, num_labels = model.token_proj.out_features, model.num_labels
        self.token_heads = TokenHeads(dim, num_labels, model.scoring) if config.dense != "none" else None
        self.num_labels = num_labels
        needed = config.denoising and model.label_embed is None
        self.label_embed = nn.Embedding(num_labels, dim) if needed else None

    def noise(self, objects: Objects | None) -> NoisedObjects | None:
        """Noised objects to make queries from, if there shall be any."""
        config = self.config
        if not config.denoising or objects is None:
            return None
        copies = config.denoising
        if (
            self.label_embed is None
        ):  # the model has its own, as published, where it had so many queries of objects
            copies = min(copies, max(1, _MOST_NOISED // max((1, *objects[2]))))
        return noise_objects(
            objects, copies, self.num_labels, label_noise=config.label_noise, box_noise=config.box_noise
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
        num_labels: Labels S of the head.
        scoring: What class logits mean.
        label_embed: Queries of noised objects by label, where weights come with them; otherwise an aid.
        sees_edges: False: what tokens near the edges hold does not count, as published for RT-DETR.
        sees_padding: Padding counts as image, as published for RT-DETR, and so changes detections.
        num_heads: Maps of each query for its mask; 0 for a model without masks.
        part_rules: How its parts are named.

    Attributes:
        aids: Parts of training; see :func:`add_aids`.
    """

    def __init__(
        self,
        backbone: ResNetBackbone | HgNetBackbone,
        levels: int,
        pyramid: FeaturePyramid | HybridEncoder,
        position: nn.Module,
        decoder: BoxDecoder,
        *,
        dim: int,
        num_queries: int,
        num_labels: int,
        scoring: ClassScoring = SOFTMAX,
        label_embed: nn.Embedding | None = None,
        sees_edges: bool = True,
        sees_padding: bool = False,
        num_heads: int = 0,
        part_rules: tuple[PartRule, ...] = (),
    ):
        super().__init__()
        self.part_rules = part_rules
        self.scoring = scoring
        self.sees_edges = sees_edges
        self.sees_padding = sees_padding
        self.backbone = nn.ModuleList((backbone, position))
        self.levels = levels
        self.pyramid = pyramid
        self.token_proj = nn.Linear(dim, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.token_heads = TokenHeads(dim, num_labels, scoring)
        self.label_embed = label_embed
        self.decoder = decoder
        self.num_queries = num_queries
        self.num_labels = num_labels
        self.aids: TwoStageAids | None = None
        self.bbox_attention: ScoreMaps | None = None
        self.mask_head: MaskHead | None = None
        if num_heads:  # the head begins at the pyramid's finest map, and climbs the stages that the pyramid leaves
            self.bbox_attention = ScoreMaps(dim, num_heads)
            self.mask_head = MaskHead(dim, num_heads + 4, backbone.channels[:-levels][::-1])

    def forward(
        self, images: Tensor, padding_mask: Tensor | None = None, objects: Objects | None = None
    ) -> Outputs:
        """Detect; as :meth:`detrkit.families.detr.model.Detr.forward`.

        In training the selected tokens' own logits and boxes come first, as a layer more.
        """
        memory, cells, fine = self._encode(images, None if self.sees_padding else padding_mask)
        features, logits = self._read_tokens(memory.tokens, cells)
        chosen, real = best_tokens(self.scoring.scores(logits).amax(-1), cells.valid, self.num_queries)
        own, own_logits = take_tokens(features, chosen), take_tokens(logits, chosen)
        own_offsets = self._propose(own, take_tokens(cells.anchors.expand(own.shape[0], -1, -1), chosen))
        queries, references = own.detach(), own_offsets.detach()
        aids = self.aids if self.training else None
        noised = None if aids is None else aids.noise(objects)
        if noised is not None and aids is not None:
            embed = self.label_embed or aids.label_embed
            assert embed is not None
            queries = torch.cat((queries, embed(noised.logit_index).to(queries.dtype)), dim=1)
            references = torch.cat((references, noised.boxes_cxcywh.logit(eps=1e-4)), dim=1)
        # known on the host: an image may have fewer tokens than there are queries
        lacking = memory.padding_mask is not None or features.shape[1] < self.num_queries
        common = None if self.label_embed is None else 0
        query_mask = _query_mask(real, noised, common, lacking)
        decoded: Decoded = self.decoder(queries, references, memory, query_mask)
        found_logits, found_boxes = decoded.logits, decoded.boxes_cxcywh
        edges = decoded.edges if self.training else None
        denoised, edges_of_noised = None, None
        if edges is not None:
            edges, edges_of_noised = _split_edges(edges, self.num_queries)
        if noised is not None and aids is not None:
            answers = (found_logits[:, :, self.num_queries :], found_boxes[:, :, self.num_queries :])
            denoised = DenoisedOutputs(*answers, noised.objects, noised.copies, edges_of_noised)
        found_logits, found_boxes = found_logits[:, :, : self.num_queries], found_boxes[:, :, : self.num_queries]
        masks = None
        if self.mask_head is not None:
            found = decoded.queries[:, : self.num_queries], found_boxes[-1].detach()
            masks = self._masks(*found, memory, cells, fine, padding_mask, (images.shape[-2], images.shape[-1]))
        if self.training:
            found_logits = torch.cat((own_logits[None], found_logits))
            found_boxes = torch.cat((own_offsets.sigmoid()[None], found_boxes))
        if lacking:
            nothing = self.scoring.nothing(found_logits)
            found_logits, found_boxes = hide_missing(found_logits, found_boxes, real, nothing)
        dense = None
        if aids is not None and aids.token_heads is not None:
            dense = _read_densely(aids.token_heads, features, cells)
        return Outputs(
            found_logits, found_boxes, dense, denoised=denoised, proposes=self.training, edges=edges, masks=masks
        )

    def _masks(
        self,
        queries: Tensor,
        boxes_cxcywh: Tensor,
        memory: Memory,
        cells: Cells,
        fine: Sequence[Level],
        padding_mask: Tensor | None,
        size_hw: tuple[int, int],
    ) -> DetrMasks:
        """Return the masks of queries, begun on the pyramid's finest map and refined on finer ones."""
        backbone: Any = self.backbone[0]
        assert self.bbox_attention is not None
        assert self.mask_head is not None
        height, width = memory.shapes_hw[0]
        tokens = memory.tokens[:, : height * width]
        projected = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, height, width)
        places = Places(boxes_cxcywh, cells.points[:, : height * width])
        heads = self.bbox_attention, self.mask_head
        how = {"exact": backbone.exact_padding, "rests": self.training and not self.mask_head.training}
        return DetrMasks(*heads, queries, tokens, projected, fine, padding_mask, size_hw, **how, places=places)

    def mask_graph(self) -> MaskGraph:
        """Return what makes masks of :meth:`DetrMasks.parts`, to be exported by itself."""
        assert self.bbox_attention is not None
        assert self.mask_head is not None
        return MaskGraph(self.bbox_attention, self.mask_head)

    def keep(self, decoder_layers: int, queries: Sequence[int]) -> None:
        """Keep the first decoder layers, whose heads are trained, and as many queries, in place: for detection."""
        decoder = self.decoder
        for name in ("layers", "class_embed", "bbox_embed", *(["quality"] if hasattr(decoder, "quality") else [])):
            setattr(decoder, name, getattr(decoder, name)[:decoder_layers])
        self.num_queries = len(queries)

    def prepare_inference(self) -> None:
        """Fold what no image changes, and leave out all class heads but the last, in place: for detection only."""
        if isinstance(self.backbone[0], ResNetBackbone):
            fold_norms(self.backbone[0])
        for module in self.modules():
            if isinstance(module, ConvNorm):
                fold_norm(module, "conv", "norm")
                module.fold_scale()
        for module in self.pyramid.modules():
            if isinstance(module, RepBlock):
                module.fuse()
        self.decoder.final_only = True
        self.label_embed = None

    def _read_tokens(self, tokens: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
        """Return features of the tokens ``[B, M, D]`` and their logits."""
        if not self.sees_edges:
            tokens = tokens * _off_edges(cells.anchors).to(tokens.dtype)
        features = self.token_norm(self.token_proj(tokens))
        return features, self.token_heads.class_embed(features).float()

    def _propose(self, features: Tensor, anchors: Tensor) -> Tensor:
        """Return boxes of chosen tokens before the sigmoid ``[B, Q, 4]``; the other tokens need none."""
        offsets = self.token_heads.boxes(features, anchors)
        if self.sees_edges:
            return offsets
        return torch.where(_off_edges(anchors), offsets, torch.finfo(offsets.dtype).max)

    def _encode(self, images: Tensor, padding_mask: Tensor | None) -> tuple[Memory, Cells, list[Level]]:
        """Encode the image as tokens of all levels, and locate them; and return what masks are refined over."""
        backbone: Any = self.backbone[0]
        finer = 0 if self.mask_head is None else self.mask_head.steps
        levels: list[Level] = backbone.pyramid(images, padding_mask, finer + self.levels)
        maps, masks = zip(*levels[finer:], strict=True)
        mixed, mixed_masks = self.pyramid(maps, masks, self.backbone[1])
        shapes_hw = [(x.shape[-2], x.shape[-1]) for x in mixed]  # no int(): it would fix the size of an export
        cells = locate_cells(shapes_hw, mixed_masks, images.device)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in mixed], dim=1)
        return _memory(tokens, shapes_hw, mixed_masks), cells, [*levels[:finer], (mixed[0], mixed_masks[0])]


def _off_edges(anchors: Tensor) -> Tensor:
    """Return which anchors lie inside the image, ``[..., 1]``."""
    return ((anchors > EDGE) & (anchors < 1 - EDGE)).all(-1, keepdim=True)


def _split_edges(edges: EdgeOutputs, count: int) -> tuple[EdgeOutputs, EdgeOutputs]:
    """Return the edges of the first queries, and of the others."""
    first, others = (
        edges._replace(logits=edges.logits[:, :, part], starts=edges.starts[:, part])
        for part in (slice(count), slice(count, None))
    )
    return first, others


def _query_mask(real: Tensor, noised: NoisedObjects | None, common: int | None, lacking: bool) -> QueryMask:
    """Return which queries may look at which: the model's own at each other, a copy's objects at each other.

    With ``common`` 0, these may look at the model's own too (arXiv:2203.01305, section 4.3).
    """
    blocks, exists, count = torch.zeros_like(real[0], dtype=torch.int64), real, real.shape[1]
    if noised is None:
        return block_mask(blocks, exists) if lacking else None
    blocks = torch.cat((blocks, noised.blocks + 1))
    exists = torch.cat((real, noised.objects != NO_QUERY), dim=1)
    mask = block_mask(blocks, exists, common)
    return (mask[..., :count, :count] if lacking else None), mask[..., count:, :]


def _read_densely(heads: TokenHeads, features: Tensor, cells: Cells) -> DenseOutputs:
    logits, offsets = heads(features, cells.anchors)
    return DenseOutputs(logits, offsets.sigmoid(), cells.points, cells.valid)


def _memory(tokens: Tensor, shapes_hw: list[tuple[int, int]], masks: list[Tensor | None]) -> Memory:
    known = [mask.flatten(1) for mask in masks if mask is not None]
    if not known:
        return Memory(tokens, shapes_hw, None, None)
    padding_mask = torch.cat(known, dim=1)
    return Memory(tokens, shapes_hw, padding_mask, valid_shares(padding_mask, shapes_hw))


@torch.no_grad()
def start_heads(class_embed: nn.Linear, bbox_embed: MLP, scoring: ClassScoring = SOFTMAX) -> None:
    """Start heads so that they find no objects, and leave boxes where they are."""
    last = bbox_embed.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    if scoring.extra_columns:
        nn.init.zeros_(class_embed.bias)
        class_embed.bias[-1] = _FIRST_NO_OBJECT
    else:  # a hundredth of probability for each class (arXiv:1708.02002, section 4.1)
        nn.init.constant_(class_embed.bias, -math.log(99))


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
    decoder = BoxDecoder(layers, dim, num_labels + SOFTMAX.extra_columns)
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
        num_heads=config.num_heads if config.masks else 0,
        part_rules=two_stage_rules(config.decoder_layers, len(backbone.channels)),
    )


def two_stage_rules(decoder: int, stages: int) -> tuple[PartRule, ...]:
    """Return the rules of parts of a network with so many decoder layers and stages of the backbone."""
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
        PartRule(r"mask_head\.|bbox_attention\.", "mask_head"),
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
    if model.label_embed is not None and not aids.denoising:
        model.label_embed.requires_grad_(False)  # several processes would wait for its gradient, and exchange none
    if aids.dense != "none" or aids.denoising:
        model.aids = TwoStageAids(aids, model)
