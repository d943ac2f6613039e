"""Reading DETR weights: the published ``.pth`` files and the hub's safetensors folders.

Tensors say what their shapes can say; the file's own words (``args``, ``config.json``) say the rest, and where
both speak they must agree. What neither says is assumed, and said to be.

A published checkpoint's labels are raw COCO category ids: 91 of them, 80 used. They become a ClassMap over
the 80 classes, so that nothing else in detrkit ever sees the gaps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detrkit.checkpoint import torch_fault
from detrkit.classes import COCO_CATEGORY_IDS, COCO_NAMES, ClassMap
from detrkit.config import Config, update_config
from detrkit.errors import ConfigError, WeightsError, listed
from detrkit.families.detr.arguments import Told, read_arguments
from detrkit.families.detr.config import DetrConfig
from detrkit.families.detr.hub import UNUSED_LABEL, read_hub
from detrkit.families.detr.layouts import State, hub_to_published, is_hub_layout
from detrkit.families.detr.presets import PRESETS
from detrkit.families.weights import Weights
from detrkit.nn.backbones import SMALL_BACKBONES, infer_backbone

_COCO_LABELS = 91

_BY_SHAPES = ("backbone", "hidden_dim", "encoder_layers", "decoder_layers", "ffn_dim", "num_queries", "pre_norm")
"""Fields that the shapes of the tensors tell, of every kind of file."""

_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")


def coco_class_map() -> ClassMap:
    """Return the classes of the published checkpoints: 80 of COCO in 91 slots that are category ids."""
    return ClassMap(COCO_NAMES, COCO_CATEGORY_IDS, logit_index=COCO_CATEGORY_IDS, num_labels=_COCO_LABELS)


def read_weights(
    path: str | Path, model: DetrConfig | None = None, overrides: Mapping[str, Any] | None = None
) -> Weights:
    """Read a DETR checkpoint of either layout.

    Args:
        path: A ``.pth`` file as published or written by the published training script, a ``.safetensors``
            file, or a folder with ``config.json`` and ``model.safetensors``, whole or in shards.
        model: The model it is for, where the file cannot tell: DC5 changes no tensor's shape. None reads it from
            the file's own words, or the published file's hash or name.
        overrides: Fields of the model that go over what the file says, or leaves unsaid.

    Raises:
        WeightsError: The file is missing or damaged, would run code, or is of another model.
    """
    path, overrides = Path(path), overrides or {}
    state, args = _read_folder(path) if path.is_dir() else _read_file(path)
    if is_hub_layout(state):
        state = hub_to_published(state)
    _check_is_detr(state, path)
    # what the file says of itself, besides the tensors
    told = Told() if args is None else read_arguments(args, path)
    if args is None and (path.is_dir() or path.suffix == ".safetensors"):
        folder = path if path.is_dir() else path.parent
        try:
            told = read_hub(folder) or told
        except (AttributeError, TypeError, ValueError, LookupError) as error:  # any value may be of any type
            kinds = "config.json or preprocessor_config.json has a value of another type than transformers writes"
            raise WeightsError(f"{folder}: {kinds}: {error}") from error
    published = None if told.by else published_preset(path)
    # the model: by shapes, then by what only words can tell
    found = infer_model_config(state, published or path.name)
    config = _believe(found, told, overrides, path)
    if model is not None:
        config = _merge(model, config, told, overrides, path)
    unsaid = [name for name in ("num_heads", "dilation") if f"model.{name}" not in told.settings]
    unsaid = [name for name in unsaid if name not in overrides]
    notes = told.notes
    if unsaid and model is None and published is None:
        assumed = ", ".join(f"{name} {getattr(config, name)}" for name in unsaid)
        notes += (
            f"nothing in the file tells {assumed}, which is assumed; no shape shows it. If it is another, say so: "
            f"--as {','.join(f'{name}=VALUE' for name in unsaid)}, or the preset",
        )
    classes = _class_map(state, told, published, path)
    settings = {key: value for key, value in told.settings.items() if not key.startswith("model.")}
    return Weights(state, config, classes, str(path), settings, notes)


def published_preset(path: Path) -> str | None:
    """Return the preset whose published file this is, by its name or else by its hash; None if it is none."""
    published = {name: preset.published for name, preset in PRESETS.items() if preset.published}
    by_name = [name for name, weights in published.items() if path.name == weights.url.rpartition("/")[2]]
    if by_name or not path.is_file():
        return next(iter(by_name), None)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return next((name for name, weights in published.items() if digest.startswith(weights.sha256)), None)


def infer_model_config(state: Mapping[str, Tensor], name: str = "") -> DetrConfig:
    """Infer the model that a state dict belongs to from its shapes.

    Heads and dilation leave no trace in the shapes: dilation is taken from the name of file or preset, and heads
    are 32 features each.
    """
    hidden_dim = state["query_embed.weight"].shape[1]
    backbone = infer_backbone(state, "backbone.0.body.")
    dilation = "dc5" in name.lower() and backbone in ("resnet50", "resnet101")
    small = backbone in SMALL_BACKBONES
    first = "transformer.encoder.layers.0.linear1.weight"
    if first not in state:
        first = "transformer.decoder.layers.0.linear1.weight"
    return DetrConfig(
        preset=f"detr-{backbone.replace('resnet', 'r')}{'-dc5' if dilation else ''}",
        backbone=backbone,
        dilation=dilation,
        backbone_norm=_infer_norm(state),
        frozen_stages=0 if small else "auto",
        position="learned" if "backbone.1.row_embed.weight" in state else "sine",
        hidden_dim=hidden_dim,
        num_heads=max(hidden_dim // 32, 1),
        encoder_layers=_count_layers(state, "encoder"),
        decoder_layers=_count_layers(state, "decoder"),
        ffn_dim=state[first].shape[0],
        pre_norm="transformer.encoder.norm.weight" in state,
        num_queries=state["query_embed.weight"].shape[0],
        query_reference="query_reference" in state,
    )


def _believe(found: DetrConfig, told: Told, overrides: Mapping[str, Any], path: Path) -> DetrConfig:
    """Return the model as shapes and words have it; words go where shapes cannot tell.

    Raises:
        WeightsError: They contradict each other, or the words ask for what detrkit does not have.
    """
    said = {key.removeprefix("model."): value for key, value in told.settings.items() if key.startswith("model.")}
    for field in (*_BY_SHAPES, "position", "query_reference"):
        if field in said and said[field] != getattr(found, field):
            name = told.names.get(f"model.{field}", field)
            raise WeightsError(
                f"{path}: {told.by} says {name} {said[field]!r}, but its tensors are of a model with {field} "
                f"{getattr(found, field)!r}; they do not belong together"
            )
    # tensors tell the norm; family and padding are not the file's to say
    said = {key: value for key, value in said.items() if key not in ("backbone_norm", "family", "padding")}
    said |= overrides
    if "preset" not in said:
        dilated = said.get("dilation", found.dilation)
        said["preset"] = found.preset.removesuffix("-dc5") + ("-dc5" if dilated else "")
    try:
        believed = update_config(Config(model=found), {"model": said}).model
    except ConfigError as error:
        where = told.by if said.keys() - overrides.keys() - {"preset"} else "what was said of it"
        raise WeightsError(f"{path}: {where} cannot be honoured: {error}") from error
    assert isinstance(believed, DetrConfig)
    return believed


def _infer_norm(state: Mapping[str, Tensor]) -> Any:
    if "backbone.0.body.bn1.running_mean" not in state:
        return "group"
    return "batch" if "backbone.0.body.bn1.num_batches_tracked" in state else "frozen"


def _count_layers(state: Mapping[str, Tensor], part: str) -> int:
    pattern = re.compile(rf"transformer\.{part}\.layers\.(\d+)\.")
    return 1 + max((int(match.group(1)) for match in map(pattern.match, state) if match), default=-1)


def _merge(
    wanted: DetrConfig, found: DetrConfig, told: Told, overrides: Mapping[str, Any], path: Path
) -> DetrConfig:
    """Merge two sections: the wanted one wins where the file cannot tell; where it can, both must agree."""
    told_fields = [key.removeprefix("model.") for key in told.settings if key.startswith("model.")]
    told_fields = [field for field in told_fields if field in ("num_heads", "dilation", "position", "activation")]
    for field in (*_BY_SHAPES, *told_fields):
        if field not in overrides and getattr(wanted, field) != getattr(found, field):
            raise WeightsError(
                f"{path} holds a model with {field} {getattr(found, field)}, but {wanted.preset} has "
                f"{getattr(wanted, field)}; leave the model out to take what the file says"
            )
    changes = {field: getattr(found, field) for field in overrides}
    if wanted.backbone_norm == "auto":
        changes |= {"backbone_norm": found.backbone_norm, "frozen_stages": found.frozen_stages}
    return wanted.model_copy(update=changes)


def _class_map(state: Mapping[str, Tensor], told: Told, published: str | None, path: Path) -> ClassMap:
    """Return the classes of the head: as the file names them, as the published file has them, or assumed.

    A head with as many rows as COCO's is not COCO's by that: people train classes of their own in it, with ids
    that COCO never used. So all rows stay classes where the names are assumed.
    """
    rows = state["class_embed.weight"].shape[0] - 1
    if told.num_labels not in (None, rows):
        raise WeightsError(
            f"{path}: {told.by} says {told.num_labels} classes, but the head has {rows} and no-object; they do "
            "not belong together"
        )
    # names that the file holds; transformers writes LABEL_0, LABEL_1, ... where nobody gave any
    if any(name != f"LABEL_{index}" for index, name in told.labels.items()):
        named = {index: told.labels.get(index, f"class_{index}") for index in range(rows)}
        named = {index: name for index, name in named.items() if name != UNUSED_LABEL}
        index = tuple(named)
        return ClassMap(tuple(named.values()), index, logit_index=index, num_labels=rows)
    if published is not None and rows == _COCO_LABELS:
        return coco_class_map()
    # names that nobody holds
    guessed = f"the file holds no class names; its {rows} rows are called class_0, class_1, ..."
    names = {index: f"class_{index}" for index in range(rows)}
    if rows == _COCO_LABELS and told.dataset in (None, "coco"):
        names |= dict(zip(COCO_CATEGORY_IDS, COCO_NAMES, strict=True))
        why = "args.dataset_file is coco" if told.dataset else "they are as many as COCO's"
        guessed = (
            f"the file holds no class names; its {rows} rows are called as COCO's categories, since {why}, and "
            "those that COCO does not use class_0, class_12, ..."
        )
    guessed += "; if they are others, say --classes FILE (COCO JSON, or a name a line)"
    return ClassMap(tuple(names.values()), tuple(names), guessed=guessed)


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
    for name, tensor in state.items():
        fault = _fault(name, tensor)
        if fault:
            raise WeightsError(f"{path} is damaged, or no detection checkpoint: {name} {fault}")


def _fault(name: str, tensor: Tensor) -> str:
    """Return what is wrong with a tensor, whatever model it is for; empty if nothing is."""
    dims = {"query_embed.weight": 2, "class_embed.weight": 2, "backbone.0.body.conv1.weight": 4}
    if tensor.is_meta or tensor.layout is not torch.strided:
        return "holds no plain numbers"
    if tensor.dim() != dims.get(name, tensor.dim()) or (name in dims and not tensor.numel()):
        return f"is {tuple(tensor.shape)}, expected {dims[name]} sides"
    if name.endswith("num_batches_tracked"):
        return ""
    if not tensor.is_floating_point():
        return f"is {tensor.dtype}, expected floating-point numbers"
    return "" if bool(tensor.isfinite().all()) else "holds NaN or infinity"


def _read_file(path: Path) -> tuple[State, Any]:
    """Return the tensors of a file, and its ``args`` or None."""
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path), None
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is damaged or not a safetensors file: {error}") from error
    content = load_tensors_only(path)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{path} holds no state dict; expected tensors by name, under 'model' as published")
    args = content.get("args") if state is not content else None
    return {str(name): tensor for name, tensor in state.items()}, args


def load_tensors_only(path: Path) -> Any:
    """Open a ``torch.save`` file of tensors and primitives, never running code from it.

    The published training script also stores its argparse arguments, which hold plain values only, and paths where
    it was started by submitit.

    Raises:
        WeightsError: The file is damaged, or holds objects whose loading could run code.
    """
    allowed: list[Any] = [argparse.Namespace]
    for name in _PATHS:  # as pure paths: those of another system cannot be made here
        pure = pathlib.PureWindowsPath if "Windows" in name else pathlib.PurePosixPath
        allowed += [(pure, f"{module}.{name}") for module in ("pathlib", "pathlib._local")]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch only guesses at what the error below says
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any file may be given, and torch's old formats fail in many ways on what is none
        raise WeightsError(
            f"{path} is refused: {torch_fault(error)}. Expected tensors, as in detr-r50.pth or a safetensors file"
        ) from error


def _read_folder(folder: Path) -> tuple[State, None]:
    """Return the tensors of a folder: of one safetensors file, or of the shards that an index lists."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if folder / "model.safetensors" in files:
        files = [folder / "model.safetensors"]
    if len(files) == 1 and not index.is_file():
        return _read_file(files[0])[0], None
    if not index.is_file():
        raise WeightsError(
            f"{folder} holds {len(files)} .safetensors files, expected model.safetensors beside config.json, or "
            f"{index.name} that lists its shards"
        )
    try:
        places = {
            str(name): str(file) for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index} cannot be read, expected weight_map with a file by tensor: {error!r}"
        ) from error
    shards = sorted(set(places.values()))
    outside = [shard for shard in shards if shard != Path(shard).name]
    if outside:
        raise WeightsError(f"{index} names files outside its folder, such as {outside[0]!r}; expected names only")
    state: State = {}
    for shard in shards:
        state |= _read_file(folder / shard)[0]
    absent = [name for name in places if name not in state]
    if absent:
        raise WeightsError(f"the shards of {folder} lack {len(absent)} tensors of {index.name}: {listed(absent)}")
    return state, None
