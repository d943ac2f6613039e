"""Reading DETR weights: the published ``.pth`` files and the hub's safetensors folders.

Tensors say what their shapes can say; the file's own words (``args``, ``config.json``) say the rest, and where
both speak they must agree. What neither says is assumed, and said to be.

A published checkpoint's labels are raw COCO category ids: 91 of them, 80 used. They become a ClassMap over
the 80 classes, so that nothing else in detrkit ever sees the gaps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from detrkit.classes import COCO_CATEGORY_IDS, COCO_NAMES, COCO_STUFF, ClassMap
from detrkit.config import Config, update_config
from detrkit.errors import ConfigError, WeightsError, listed
from detrkit.families.detr.arguments import Told, read_arguments
from detrkit.families.detr.config import DetrConfig
from detrkit.families.detr.hub import UNUSED_LABEL, read_hub
from detrkit.families.detr.layouts import hub_to_published, is_hub_layout
from detrkit.families.detr.model import build_detr
from detrkit.families.detr.presets import PRESETS
from detrkit.families.detr.state_files import read_file, read_folder, unwrap_names
from detrkit.families.weights import Weights
from detrkit.nn.backbones import SMALL_BACKBONES, infer_backbone

_COCO_LABELS, _COCO_PANOPTIC_LABELS = 91, 250

_COCO_HEADS = {
    *((_COCO_LABELS, dataset) for dataset in (None, "coco")),
    *((_COCO_PANOPTIC_LABELS, dataset) for dataset in (None, "coco_panoptic")),
}
"""Rows of heads and data sets of which these are COCO's."""

_BY_SHAPES = (
    *("backbone", "hidden_dim", "encoder_layers", "decoder_layers", "ffn_dim", "num_queries", "pre_norm", "masks"),
)
"""Fields that the shapes of the tensors tell, of every kind of file."""

_FIRST_LAYER = "transformer.decoder.layers.0.linear1.weight"

_OTHERS = {
    "denoising_class_embed": "RT-DETR or D-FINE",
    "enc_score_head": "RT-DETR or D-FINE",
    "sampling_offsets": "Deformable DETR, or a model that came of it, such as DINO",
    "refpoint_embed": "DAB-DETR or DN-DETR",
    "ca_qcontent_proj": "Conditional DETR",
    "query_scale.": "Conditional DETR",
    "text_encoder.": "MDETR, which reads text",
    "detection_tokens": "YOLOS",
    "det_token": "YOLOS",
}
"""Parts of tensors' names that classic DETR lacks, and whose they are."""


def coco_class_map() -> ClassMap:
    """Return the classes of the published checkpoints: 80 of COCO in 91 slots that are category ids."""
    return ClassMap(COCO_NAMES, COCO_CATEGORY_IDS, logit_index=COCO_CATEGORY_IDS, num_labels=_COCO_LABELS)


def coco_panoptic_class_map() -> ClassMap:
    """Return the classes of the published checkpoints with masks: 80 things and 53 stuff in 250 slots."""
    ids = (*COCO_CATEGORY_IDS, *COCO_STUFF)
    stuff = tuple(range(len(COCO_NAMES), len(ids)))
    return ClassMap(
        (*COCO_NAMES, *COCO_STUFF.values()), ids, logit_index=ids, num_labels=_COCO_PANOPTIC_LABELS, stuff=stuff
    )


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
    state, args, place = (read_folder(path), None, "") if path.is_dir() else read_file(path)
    _check_is_no_other(state, path)
    state, notes = unwrap_names(state, path)
    notes = ((place,) if place else ()) + notes
    of_hub = is_hub_layout(state)
    if of_hub:
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
    published, proven = (None, False) if told.by else published_preset(path)
    # the model: by shapes, then by what only words can tell
    try:
        found = infer_model_config(state, published or path.name)
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{item['loc'][-1]} is {item['input']}: {item['msg']}" for item in error.errors())
        raise WeightsError(
            f"{path}: by the shapes of its tensors it is no model that detrkit has: {wrong}"
        ) from error
    config = _believe(found, told, overrides, path)
    _check_is_whole(state, config, path)
    if model is not None:
        config = _merge(model, config, told, overrides, path)
    notes += told.notes
    if model is None and published is None:
        notes += _assumptions(config, told, overrides, path, of_hub)
    classes = _class_map(state, told, proven, path)
    if classes.names and told.num_labels not in (None, classes.num_labels):
        notes += (f"{told.by} says {told.num_labels} classes; the head has {classes.num_labels} and no-object",)
    settings = {key: value for key, value in told.settings.items() if not key.startswith("model.")}
    return Weights(state, config, classes, str(path), settings, notes)


def _assumptions(
    config: DetrConfig, told: Told, overrides: Mapping[str, Any], path: Path, of_hub: bool
) -> tuple[str, ...]:
    """Say what neither tensors nor words tell of a model.

    Raises:
        WeightsError: It is too much to assume.
    """
    silent = ["num_heads", "dilation"]
    silent += ["activation", "norm_between"] if of_hub else []  # the authors' script has but one of them
    silent += ["backbone_norm"] if config.backbone_norm == "group" else []
    own = config.backbone in SMALL_BACKBONES or config.query_reference
    silent += ["position_at_input", "position_temperature", "position_scale"] if own else []
    unsaid = [name for name in silent if f"model.{name}" not in told.settings and name not in overrides]
    if not unsaid:
        return ()
    values = ", ".join(f"{name} {getattr(config, name)}" for name in unsaid)
    say = f"--as {','.join(f'{name}=VALUE' for name in unsaid)}, or the preset"
    if own:
        raise WeightsError(
            f"{path} is of a model that only detrkit has, and nothing in it tells {', '.join(unsaid)}, which no "
            f"shape shows; name its preset: --as {config.preset}, or {say}"
        )
    assumed = f"nothing in the file tells {values}, which is assumed; no shape shows it"
    return (f"{assumed}. If it is another, say so: {say}",)


def published_preset(path: Path) -> tuple[str | None, bool]:
    """Return the preset whose published file this is, by hash or else name, and whether the hash says so."""
    published = {name: preset.published for name, preset in PRESETS.items() if preset.published}
    digest = ""
    if path.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    by_hash = [name for name, weights in published.items() if digest and digest.startswith(weights.sha256)]
    by_name = [name for name, weights in published.items() if path.name == weights.url.rpartition("/")[2]]
    return next(iter(by_hash + by_name), None), bool(by_hash)


def infer_model_config(state: Mapping[str, Tensor], name: str = "") -> DetrConfig:
    """Infer the model that a state dict belongs to from its shapes.

    Heads and dilation leave no trace in the shapes: dilation is taken from the name of file or preset, and heads
    are 32 features each, or the next more that divide all.
    """
    hidden_dim = state["query_embed.weight"].shape[1]
    backbone = infer_backbone(state, "backbone.0.body.")
    dilation = "dc5" in name.lower() and backbone in ("resnet50", "resnet101")
    small = backbone in SMALL_BACKBONES
    masks = "mask_head.lay1.weight" in state
    heads = [count for count in range(1, max(hidden_dim // 32, 1) + 1) if hidden_dim % count == 0]
    return DetrConfig(
        preset=_preset_name(backbone, dilation, masks),
        backbone=backbone,
        dilation=dilation,
        backbone_norm=_infer_norm(state),
        frozen_stages=0 if small else "auto",
        position="learned" if "backbone.1.row_embed.weight" in state else "sine",
        hidden_dim=hidden_dim,
        num_heads=heads[-1],
        encoder_layers=_count_layers(state, "encoder"),
        decoder_layers=_count_layers(state, "decoder"),
        ffn_dim=state[_FIRST_LAYER].shape[0],
        pre_norm="transformer.encoder.norm.weight" in state,
        num_queries=state["query_embed.weight"].shape[0],
        query_reference="query_reference" in state,
        masks=masks,
    )


def _preset_name(backbone: str, dilation: bool, masks: bool) -> str:
    return f"detr-{backbone.replace('resnet', 'r')}{'-dc5' * dilation}{'-panoptic' * masks}"


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
        said["preset"] = _preset_name(found.backbone, bool(said.get("dilation", found.dilation)), found.masks)
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


def _class_map(state: Mapping[str, Tensor], told: Told, proven: bool, path: Path) -> ClassMap:
    """Return the classes of the head: as the file names them, as the published files have them, or assumed.

    A head with as many rows as COCO's is not COCO's by that: people train classes of their own in it, with ids
    that COCO never used. So all rows stay classes where the names are assumed.
    """
    if "class_embed.weight" not in state:
        return ClassMap((), ())
    rows = state["class_embed.weight"].shape[0] - 1
    if not rows:
        raise WeightsError(
            f"{path}: class_embed.weight has one row, expected one for a class and one for no-object"
        )
    # some scripts count no-object, or the id 0 that nothing has, and some do not
    if told.num_labels not in (None, rows, *((rows - 1, rows + 1) if told.by == "args" else ())):
        raise WeightsError(
            f"{path}: {told.by} says {told.num_labels} classes, but the head has {rows} and no-object; they do "
            "not belong together"
        )
    # the authors' 250 rows; on the hub some have names and some have not
    things = dict(zip(COCO_CATEGORY_IDS, COCO_NAMES, strict=True))
    if rows == _COCO_PANOPTIC_LABELS and (proven or things.items() <= told.labels.items()):
        return coco_panoptic_class_map()
    # names that the file holds; transformers writes LABEL_0, LABEL_1, ... where nobody gave any
    if any(name != f"LABEL_{index}" for index, name in told.labels.items()):
        named = {index: told.labels.get(index, f"class_{index}") for index in range(rows)}
        named = {index: name for index, name in named.items() if name != UNUSED_LABEL}
        index = tuple(named)
        stuff = tuple(place for place, label in enumerate(named) if label in told.stuff)
        return ClassMap(tuple(named.values()), index, logit_index=index, num_labels=rows, stuff=stuff)
    if proven and rows == _COCO_LABELS:
        return coco_class_map()
    # names that nobody holds
    guessed = f"the file holds no class names; its {rows} rows are called class_0, class_1, ..."
    names = {index: f"class_{index}" for index in range(rows)}
    if (rows, told.dataset) in _COCO_HEADS:
        names |= things if rows == _COCO_LABELS else things | dict(COCO_STUFF)
        why = f"args.dataset_file is {told.dataset}" if told.dataset else "they are as many as COCO's"
        guessed = (
            f"the file holds no class names; its {rows} rows are called as COCO's categories, since {why}, and "
            "those that COCO does not use class_0, class_12, ..."
        )
    guessed += "; if they are others, say --classes FILE (COCO JSON, or a name a line)"
    stuff = tuple(COCO_STUFF) if names.items() >= COCO_STUFF.items() else ()
    return ClassMap(tuple(names.values()), tuple(names), guessed=guessed, stuff=stuff)


def _check_is_no_other(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise WeightsError if these are tensors of a model that resembles classic DETR."""
    for part, kind in _OTHERS.items():
        if telling := next((name for name in state if part in name), None):
            raise WeightsError(
                f"{path} holds a {kind} ({telling}); detrkit reads classic DETR in such files. A "
                "folder of transformers is run by transformers: detrkit eval hf:FOLDER"
            )


def _check_is_detr(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise WeightsError unless these are sound tensors of a DETR, with a class head or without."""
    needed = ("query_embed.weight", "input_proj.weight", "backbone.0.body.conv1.weight", _FIRST_LAYER)
    missing = [name for name in needed if name not in state]
    if missing:
        some = ", ".join(list(state)[:3]) or "nothing"
        raise WeightsError(
            f"{path} is not a DETR checkpoint, or not a whole one: {', '.join(missing)} not found; it holds "
            f"{len(state)} tensors, such as {some}"
        )
    for name, tensor in state.items():
        fault = tensor_fault(name, tensor)
        if fault:
            raise WeightsError(f"{path} is damaged, or no detection checkpoint: {name} {fault}")


def _check_is_whole(state: Mapping[str, Tensor], config: DetrConfig, path: Path) -> None:
    """Raise WeightsError unless the tensors are all of a model's, and no others; the class head may be gone."""
    rows = len(state["class_embed.weight"]) - 1 if "class_embed.weight" in state else 0
    with torch.device("meta"):
        own = build_detr(config, rows).state_dict()
    faults = [f"{name} is missing" for name in own if name not in state and (rows or "class_embed" not in name)]
    faults += [f"{name} is unknown" for name in state if name not in own]
    faults += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if faults:
        raise WeightsError(
            f"{path} does not hold a whole DETR with {config.backbone}, {config.encoder_layers} encoder and "
            f"{config.decoder_layers} decoder layers: {listed(faults, 4, '; ')}"
        )


def tensor_fault(name: str, tensor: Tensor) -> str:
    """Return what is wrong with a tensor, whatever model it is for; empty if nothing is."""
    dims = {"query_embed.weight": 2, "class_embed.weight": 2, "backbone.0.body.conv1.weight": 4, _FIRST_LAYER: 2}
    is_plain = tensor.layout is torch.strided and not tensor.is_meta
    if not is_plain or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return "holds no plain numbers"
    if tensor.dim() != dims.get(name, tensor.dim()) or (name in dims and not tensor.numel()):
        return f"is {tuple(tensor.shape)}, expected {dims[name]} sides"
    if name.endswith("num_batches_tracked"):
        return ""
    if not tensor.is_floating_point() or tensor.element_size() == 1:
        return f"is {tensor.dtype}, expected floating-point numbers of 16 bits or more"
    return "" if bool(tensor.isfinite().all()) else "holds NaN or infinity"
