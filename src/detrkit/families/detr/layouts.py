"""Translating DETR's parameter names of the Hugging Face hub to the published ones.

detrkit's own names are the published ones. The hub's files name the same tensors otherwise and cut every
``in_proj`` into thirds for query, key and value; nothing else differs, so both ways are exact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from detrkit.files import read_facts

State = dict[str, Tensor]

# (published, hub): the first match renames. Attention projections are handled apart.
_NAMES = read_facts(__file__)
PARTS: Mapping[str, str] = _NAMES["parts"]
LAYER_PARTS: Mapping[str, Mapping[str, str]] = {part: _NAMES[part] for part in ("encoder", "decoder")}
# transformers' own ResNet, used by newer repositories, to torchvision's names
_RESNET_RULES: Mapping[str, str] = _NAMES["resnet"]


QUERIES = ("query_embed.weight", "model.query_position_embeddings.weight")
"""The tensor of the queries by the published name and the hub's, which every DETR has."""


MASK_PARTS = ("mask_head.", "bbox_attention.")
"""Parts of a model with masks beside the model that detects, whose names have a prefix where both are written."""
BOX_PREFIX = "detr."


def set_box_prefix(state: Mapping[str, Tensor]) -> State:
    """Return the same tensors as others name them: those of detection behind a prefix, if there are masks."""
    has_masks = any(name.startswith(MASK_PARTS) for name in state)
    return {
        f"{BOX_PREFIX}{name}" if has_masks and not name.startswith(MASK_PARTS) else name: tensor
        for name, tensor in state.items()
    }


def is_hub_layout(state: Mapping[str, Tensor]) -> bool:
    """Return whether the names are those of the Hugging Face hub."""
    return QUERIES[1] in state


def hub_to_published(state: Mapping[str, Tensor]) -> State:
    """Return the same tensors under the published names.

    Reads the hub's files, with timm's or transformers' own ResNet names, and also the names that transformers
    uses in memory. Unknown names are kept as they are.
    """
    return join_attention(
        {
            _hub_name_to_published(name): tensor
            for name, tensor in state.items()
            if not name.endswith("num_batches_tracked")  # written by some, meaningless for a frozen norm
        }
    )


def join_attention(state: Mapping[str, Tensor]) -> State:
    """Return the same tensors, projections of query, key and value as one."""
    renamed: State = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.+attn)\.([qkv])_proj\.(weight|bias)", name)
        if match:
            attention, which, kind = match.groups()
            thirds.setdefault(f"{attention}.in_proj_{kind}", {})[which] = tensor
        else:
            renamed[name] = tensor
    for name, parts in thirds.items():
        if len(parts) == 3:
            renamed[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
        else:  # left under a name that nobody asks for, so that the load report shows it
            renamed.update({f"{name}.{which}": tensor for which, tensor in parts.items()})
    return renamed


def split_attention(state: Mapping[str, Tensor]) -> State:
    """Return the same tensors, projections of attention cut into those of query, key and value."""
    found: State = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.+attn)\.in_proj_(weight|bias)", name)
        if match:
            attention, kind = match.groups()
            thirds = zip("qkv", tensor.chunk(3), strict=True)
            found.update({f"{attention}.{which}_proj.{kind}": third.contiguous() for which, third in thirds})
        else:
            found[name] = tensor
    return found


def _hub_name_to_published(name: str) -> str:
    new = rename(name, {hub: published for published, hub in PARTS.items()} | _NAMES["other_hub_parts"])
    layer = re.match(r"transformer\.(encoder|decoder)\.layers\.\d+\.", new)
    if layer:
        rest = new[layer.end() :].removeprefix("mlp.").replace("attn.o_proj.", "attn.out_proj.")
        return layer.group() + rename(rest, {hub: published for published, hub in LAYER_PARTS[layer[1]].items()})
    prefix = "backbone.0.body."
    if new.startswith(prefix):
        return prefix + _torchvision_resnet_name(new.removeprefix(prefix))
    return new


def _torchvision_resnet_name(name: str) -> str:
    """Turn transformers' ResNet names into torchvision's: stages and convolutions count from 1 there."""
    for pattern, new in _RESNET_RULES.items():
        match = re.match(pattern + r"\.", name)
        if match:
            numbers = [int(group) + 1 for index, group in enumerate(match.groups()) if index != 1]
            return match.expand(new.format(*numbers)) + "." + name[match.end() :]
    return name


def rename(name: str, parts: Mapping[str, str]) -> str:
    """Return a name with the first of the parts that it begins with replaced."""
    for before, after in parts.items():
        if name.startswith(before):
            return after + name[len(before) :]
    return name
