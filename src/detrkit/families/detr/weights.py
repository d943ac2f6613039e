"""Reading DETR weights: the published ``.pth`` files and the hub's safetensors folders.

A published checkpoint's labels are raw COCO category ids: 91 of them, 80 used. They become a ClassMap over
the 80 classes, so that nothing else in detrkit ever sees the gaps.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detrkit.classes import COCO_CATEGORY_IDS, COCO_NAMES, ClassMap
from detrkit.errors import WeightsError
from detrkit.families.detr.config import DetrConfig
from detrkit.families.detr.layouts import State, hub_to_published, is_hub_layout
from detrkit.families.weights import Weights
from detrkit.nn.backbones import SMALL_BACKBONES, infer_backbone

_COCO_LABELS = 91
UNUSED_LABEL = "N/A"


def coco_class_map() -> ClassMap:
    """Return the classes of the published checkpoints: 80 of COCO in 91 slots that are category ids."""
    return ClassMap(COCO_NAMES, COCO_CATEGORY_IDS, logit_index=COCO_CATEGORY_IDS, num_labels=_COCO_LABELS)


def read_weights(path: str | Path, model: DetrConfig | None = None) -> Weights:
    """Read a DETR checkpoint of either layout.

    Args:
        path: A ``.pth`` file as published or written by the published training script, a ``.safetensors``
            file, or a folder with ``config.json`` and ``model.safetensors``.
        model: The model it is for, where the file cannot tell: DC5 changes no tensor's shape. None reads it from
            the hub's config or the published file name.

    Raises:
        WeightsError: The file is missing or damaged, would run code, or is of another model.
    """
    path = Path(path)
    if path.is_dir():
        path = _single_safetensors(path)
    state = _read_tensors(path)
    hub = is_hub_layout(state)
    if hub:
        state = hub_to_published(state)
    _check_is_detr(state, path)
    hub_config = _read_hub_config(path.parent / "config.json") if path.suffix == ".safetensors" else {}
    found = infer_model_config(state, path.name, hub_config)
    if model is not None:
        found = _merge(model, found, path)
    return Weights(state, found, _class_map(state, hub_config), str(path))


def infer_model_config(
    state: Mapping[str, Tensor], file_name: str = "", hub_config: Mapping[str, Any] | None = None
) -> DetrConfig:
    """Infer the model that a state dict belongs to from its shapes.

    Heads and dilation leave no trace in the shapes: the hub's config or the file's name tells them, else 32
    features a head and no dilation.
    """
    hub_config = hub_config or {}
    hidden_dim = state["query_embed.weight"].shape[1]
    backbone = infer_backbone(state, "backbone.0.body.")
    dilation = bool(hub_config.get("dilation", "dc5" in file_name.lower()))
    preset = f"detr-{backbone.replace('resnet', 'r')}{'-dc5' if dilation else ''}"
    first = "transformer.encoder.layers.0.linear1.weight"
    if first not in state:
        first = "transformer.decoder.layers.0.linear1.weight"
    return DetrConfig(
        preset=preset,
        backbone=backbone,
        dilation=dilation,
        backbone_norm=_infer_norm(state),
        frozen_stages=0 if backbone in SMALL_BACKBONES else "auto",
        position="learned" if "backbone.1.row_embed.weight" in state else "sine",
        hidden_dim=hidden_dim,
        num_heads=int(hub_config.get("encoder_attention_heads", max(hidden_dim // 32, 1))),
        encoder_layers=_count_layers(state, "encoder"),
        decoder_layers=_count_layers(state, "decoder"),
        ffn_dim=state[first].shape[0],
        pre_norm="transformer.encoder.norm.weight" in state,
        num_queries=state["query_embed.weight"].shape[0],
    )


def _infer_norm(state: Mapping[str, Tensor]) -> Any:
    if "backbone.0.body.bn1.running_mean" not in state:
        return "group"
    return "batch" if "backbone.0.body.bn1.num_batches_tracked" in state else "frozen"


def _count_layers(state: Mapping[str, Tensor], part: str) -> int:
    pattern = re.compile(rf"transformer\.{part}\.layers\.(\d+)\.")
    return 1 + max((int(match.group(1)) for match in map(pattern.match, state) if match), default=-1)


def _merge(wanted: DetrConfig, found: DetrConfig, path: Path) -> DetrConfig:
    """Merge two sections: the wanted one wins where the file cannot tell; where it can, both must agree."""
    for field in (
        "backbone",
        "hidden_dim",
        "encoder_layers",
        "decoder_layers",
        "ffn_dim",
        "num_queries",
        "pre_norm",
    ):
        if getattr(wanted, field) != getattr(found, field):
            raise WeightsError(
                f"{path} holds a model with {field} {getattr(found, field)}, but {wanted.preset} has "
                f"{getattr(wanted, field)}; leave the model out to take what the file says"
            )
    if wanted.backbone_norm != "auto":
        return wanted
    return wanted.model_copy(update={"backbone_norm": found.backbone_norm, "frozen_stages": found.frozen_stages})


def _class_map(state: Mapping[str, Tensor], hub_config: Mapping[str, Any]) -> ClassMap:
    num_labels = state["class_embed.weight"].shape[0] - 1
    labels = hub_config.get("id2label") or {}
    named = {int(index): str(name) for index, name in labels.items() if str(name) != UNUSED_LABEL}
    if num_labels == _COCO_LABELS and (not named or all(name.startswith("LABEL_") for name in named.values())):
        return coco_class_map()
    named = {index: name for index, name in sorted(named.items()) if index < num_labels}
    if not named:  # a custom head in the published layout: the file holds no names
        named = {index: f"class_{index}" for index in range(num_labels)}
    logit_index = tuple(named)
    return ClassMap(tuple(named.values()), logit_index, logit_index=logit_index, num_labels=num_labels)


def _check_is_detr(state: Mapping[str, Tensor], path: Path) -> None:
    if any(name.startswith("detr.") for name in state) or any("mask_head" in name for name in state):
        raise WeightsError(f"{path} is a panoptic DETR; detrkit reads detection checkpoints so far")
    needed = ("query_embed.weight", "class_embed.weight", "input_proj.weight", "backbone.0.body.conv1.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        some = ", ".join(list(state)[:3]) or "nothing"
        raise WeightsError(
            f"{path} is not a DETR checkpoint: {', '.join(missing)} not found; it holds {len(state)} tensors, "
            f"such as {some}"
        )


def _read_tensors(path: Path) -> State:
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is damaged or not a safetensors file: {error}") from error
    content = load_tensors_only(path)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{path} holds no state dict; expected tensors by name, under 'model' as published")
    return {str(name): tensor for name, tensor in state.items()}


def load_tensors_only(path: Path) -> Any:
    """Open a ``torch.save`` file of tensors and primitives, never running code from it.

    The published training script also stores its argparse arguments, which hold plain values only.

    Raises:
        WeightsError: The file is damaged, or holds objects whose loading could run code.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch only guesses at what the error below says
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it is damaged, or holds more than tensors and plain values, which could run "
            "code when opened. Ask for a safetensors file, or for one with weights only"
        ) from error
    except Exception as error:  # any file may be given, and torch's old formats fail in many ways on what is none
        if isinstance(error, (RuntimeError, EOFError, OSError)) and str(error):
            reason = f": {str(error).splitlines()[0]}"
        else:
            reason = ", expected one such as detr-r50.pth"
        raise WeightsError(f"{path} is damaged or not a PyTorch file{reason}") from error


def _single_safetensors(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise WeightsError(
            f"{folder} holds {len(files)} .safetensors files, expected one (model.safetensors) beside config.json"
        )
    return files[0]


def _read_hub_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or content.get("model_type", "detr") != "detr":
        kind = content.get("model_type") if isinstance(content, dict) else type(content).__name__
        raise WeightsError(f"{path} is the config of a {kind} model, expected detr")
    return content
