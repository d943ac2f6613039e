"""Translating DETR's parameter names of the Hugging Face hub to the published ones.

detrkit's own names are the published ones. The hub's files name the same tensors otherwise and cut every
``in_proj`` into thirds for query, key and value; nothing else differs, so both ways are exact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]

# (published, hub): the first match renames. Attention projections are handled apart.
PARTS: tuple[tuple[str, str], ...] = (
    ("transformer.decoder.norm.", "model.decoder.layernorm."),
    ("transformer.encoder.norm.", "model.encoder.layernorm."),
    ("transformer.encoder.layers.", "model.encoder.layers."),
    ("transformer.decoder.layers.", "model.decoder.layers."),
    ("backbone.0.body.", "model.backbone.conv_encoder.model."),
    ("backbone.1.row_embed.", "model.position_embedding.row_embeddings."),
    ("backbone.1.col_embed.", "model.position_embedding.column_embeddings."),
    ("input_proj.", "model.input_projection."),
    ("query_embed.", "model.query_position_embeddings."),
    ("class_embed.", "class_labels_classifier."),
    ("bbox_embed.", "bbox_predictor."),
)
_OTHER_HUB_PARTS = (
    # transformers 5 drops a level of its files' names once it has loaded them
    ("model.backbone.model.", "backbone.0.body."),
    # transformers 4 kept learned positions one level further down
    ("model.backbone.position_embedding.row_embeddings.", "backbone.1.row_embed."),
    ("model.backbone.position_embedding.column_embeddings.", "backbone.1.col_embed."),
)
ENCODER_PARTS = (
    ("linear1.", "fc1."),
    ("linear2.", "fc2."),
    ("norm1.", "self_attn_layer_norm."),
    ("norm2.", "final_layer_norm."),
)
DECODER_PARTS = (
    ("multihead_attn.", "encoder_attn."),
    ("linear1.", "fc1."),
    ("linear2.", "fc2."),
    ("norm1.", "self_attn_layer_norm."),
    ("norm2.", "encoder_attn_layer_norm."),
    ("norm3.", "final_layer_norm."),
)
# transformers' own ResNet, used by newer repositories, to torchvision's names
_RESNET_RULES = (
    (r"embedder\.embedder\.convolution", "conv1"),
    (r"embedder\.embedder\.normalization", "bn1"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution", r"layer{0}.\2.downsample.0"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization", r"layer{0}.\2.downsample.1"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution", r"layer{0}.\2.conv{1}"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization", r"layer{0}.\2.bn{1}"),
)


QUERIES = ("query_embed.weight", "model.query_position_embeddings.weight")
"""The tensor of the queries by the published name and the hub's, which every DETR has."""


def is_hub_layout(state: Mapping[str, Tensor]) -> bool:
    """Return whether the names are those of the Hugging Face hub."""
    return QUERIES[1] in state


def hub_to_published(state: Mapping[str, Tensor]) -> State:
    """Return the same tensors under the published names.

    Reads the hub's files, with timm's or transformers' own ResNet names, and also the names that transformers
    uses in memory. Unknown names are kept as they are.
    """
    renamed: State = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):  # written by some, meaningless for a frozen norm
            continue
        new = _hub_name_to_published(name)
        match = re.fullmatch(r"(.+attn)\.([qkv])_proj\.(weight|bias)", new)
        if match:
            attention, which, kind = match.groups()
            thirds.setdefault(f"{attention}.in_proj_{kind}", {})[which] = tensor
        else:
            renamed[new] = tensor
    for name, parts in thirds.items():
        if len(parts) == 3:
            renamed[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
        else:  # left under a name that nobody asks for, so that the load report shows it
            renamed.update({f"{name}.{which}": tensor for which, tensor in parts.items()})
    return renamed


def _hub_name_to_published(name: str) -> str:
    new = rename(name, [*((hub, published) for published, hub in PARTS), *_OTHER_HUB_PARTS])
    layer = re.match(r"transformer\.(encoder|decoder)\.layers\.\d+\.", new)
    if layer:
        parts = ENCODER_PARTS if layer.group(1) == "encoder" else DECODER_PARTS
        rest = new[layer.end() :].removeprefix("mlp.").replace("attn.o_proj.", "attn.out_proj.")
        return layer.group() + rename(rest, [(hub, published) for published, hub in parts])
    prefix = "backbone.0.body."
    if new.startswith(prefix):
        return prefix + _torchvision_resnet_name(new.removeprefix(prefix))
    return new


def _torchvision_resnet_name(name: str) -> str:
    """Turn transformers' ResNet names into torchvision's: stages and convolutions count from 1 there."""
    for pattern, new in _RESNET_RULES:
        match = re.match(pattern + r"\.", name)
        if match:
            numbers = [int(group) + 1 for index, group in enumerate(match.groups()) if index != 1]
            return match.expand(new.format(*numbers)) + "." + name[match.end() :]
    return name


def rename(name: str, parts: Sequence[tuple[str, str]]) -> str:
    """Return a name with the first of the parts that it begins with replaced."""
    for before, after in parts:
        if name.startswith(before):
            return after + name[len(before) :]
    return name
