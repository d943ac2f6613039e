"""Settings of a DETR in a folder of transformers: ``config.json`` and ``preprocessor_config.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, get_args

from detrkit.config import BackboneName, TransformConfig
from detrkit.errors import WeightsError
from detrkit.families.detr.arguments import Told
from detrkit.families.detr.config import DetrConfig
from detrkit.files import parse_json, read_facts

UNUSED_LABEL = "N/A"
STUFF_KEY = "stuff_labels"
"""Of labels without number, which transformers is told of at each call instead; detrkit's own key."""

_NAMES = read_facts(__file__)
HUB_KEYS: Mapping[str, str] = _NAMES["keys"]
"""Keys of transformers' DetrConfig, and the fields of the model section that they are, of the same defaults."""

_ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
"""Other names that transformers reads for the same."""

_SILENT = ("encoder_attention_heads", "position_embedding_type", "activation_function", "auxiliary_loss")
"""Keys that matter where they are left out too: older versions leave out what has its default."""

_ACTIVATIONS: Mapping[str, str] = _NAMES["activations"]
_RESNETS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}
_PROCESSORS = ("DetrImageProcessor", "DetrImageProcessorFast", "DetrImageProcessorPil", "DetrFeatureExtractor")


def read_hub(folder: Path) -> Told | None:
    """Return what a folder says of its model; None if it has no ``config.json``.

    Raises:
        WeightsError: It cannot be read, or asks for something that detrkit does not do.
        TypeError: A value is of another type than transformers writes; or another of Python's errors of that kind.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    if config.get("model_type", "detr") != "detr":
        raise WeightsError(f"{path} is the config of a {config['model_type']} model, expected detr")
    config = {**config, **{name: config[alias] for alias, name in _ALIASES.items() if alias in config}}
    for part, usual in (("attention_heads", 8), ("ffn_dim", 2048)):
        encoder, decoder = (config.get(f"{side}_{part}", usual) for side in ("encoder", "decoder"))
        if encoder != decoder:
            _refuse(path, f"encoder_{part}", encoder, f"the decoder's number, {decoder}: one for both")
    said = {**{name: getattr(DetrConfig(), HUB_KEYS[name]) for name in _SILENT}, **config}
    fields = {field: said[name] for name, field in HUB_KEYS.items() if name in said}
    fields["activation"] = _ACTIVATIONS.get(str(fields["activation"]), fields["activation"])
    fields["backbone"], fields["dilation"] = _read_backbone(config, path)
    settings = {f"model.{field}": value for field, value in fields.items()}
    names = {f"model.{field}": name for name, field in HUB_KEYS.items()}
    labels = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    preprocessing, notes = _read_preprocessing(folder)
    stuff = tuple(int(label) for label in config.get(STUFF_KEY) or ())
    return Told(
        "config.json", settings | preprocessing, names, labels, len(labels) or None, notes=notes, stuff=stuff
    )


def _read_backbone(config: Mapping[str, Any], path: Path) -> tuple[str, bool]:
    """Return the backbone's name and whether it is dilated."""
    own: Any = config.get("backbone_config")
    kwargs = config.get("backbone_kwargs") or {}
    for where in (config, own or {}, {"num_channels": kwargs.get("in_chans")}):
        if where.get("num_channels") not in (None, 3):
            _refuse(path, "num_channels", where["num_channels"], "3, of RGB images")
    if own is None and config.get("use_timm_backbone", True):
        dilated = bool(config.get("dilation", False))
        own = {"backbone": config.get("backbone") or "resnet50", "output_stride": 16 if dilated else 32, **kwargs}
    if own is not None and own.get("model_type", "timm_backbone") == "timm_backbone":
        name, _, _ = str(own.get("backbone")).partition(
            "."
        )  # behind the point: how its first weights were trained
        stride, indices = own.get("output_stride") or 32, own.get("out_indices")
        known = [name for name in get_args(BackboneName) if re.fullmatch(r"resnet\d+", name)]
        if name not in known:
            _refuse(path, "backbone", own.get("backbone"), f"one of {', '.join(known)}")
        if stride not in (16, 32) or (config.get("dilation") and stride != 16):
            _refuse(path, "output_stride", stride, "32, or 16 with dilation true")
        if indices and indices[-1] not in (4, -1):
            _refuse(path, "out_indices", indices, "the last stage, 4, as the last")
        return name, stride == 16
    own = own or {}
    if own.get("model_type", "resnet") != "resnet":
        _refuse(path, "backbone_config.model_type", own["model_type"], "timm_backbone or resnet")
    kind = (own.get("layer_type", "bottleneck"), tuple(own.get("depths", (3, 4, 6, 3))))
    if kind not in _RESNETS:
        _refuse(path, "backbone_config", kind, f"layer_type and depths of {', '.join(_RESNETS.values())}")
    usual = {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False}
    for name, value in usual.items():
        if own.get(name, value) != value:
            _refuse(path, f"backbone_config.{name}", own[name], str(value))
    return _RESNETS[kind], False  # transformers dilates timm's only


def _read_preprocessing(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the size rule, mean and deviation of a folder as keys of a config, and what had to be assumed."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        assumed = "short side 800, long side at most 1333, and ImageNet's mean and deviation"
        return {}, (f"it has no {path.name}: {assumed} are assumed",)
    values = read_json(path)
    kind = values.get("image_processor_type") or values.get("feature_extractor_type") or _PROCESSORS[0]
    if kind not in _PROCESSORS:
        _refuse(path, "image_processor_type", kind, f"one of {', '.join(_PROCESSORS)}")
    for name, usual in (("do_resize", True), ("resample", 2), ("pad_size", None), ("do_center_crop", None)):
        if (got := values.get(name, usual)) != usual and (usual is not None or got is not False):
            _refuse(path, name, got, str(usual))
    # the size rule: one number is the short side
    size = values.get("size")
    if size is None:
        size = {"shortest_edge": 800, "longest_edge": 1333}
    if isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": values.get("max_size", 1333)}
    sides = {key for key, side in size.items() if side is not None} if isinstance(size, dict) else set()
    if sides != {"shortest_edge", "longest_edge"}:
        _refuse(path, "size", size, "shortest_edge and longest_edge in pixels")
    # (pixel * factor - mean) / std, with detrkit's factor of 1/255
    imagenet = TransformConfig()
    mean: Any = values.get("image_mean", imagenet.mean)
    std: Any = values.get("image_std", imagenet.std)
    if not values.get("do_normalize", True):
        mean, std = 0.0, 1.0
    factor = float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
    if factor <= 0:
        _refuse(path, "rescale_factor", factor, "a number above 0")
    scale = 1.0 if abs(255 * factor - 1) < 1e-6 else 255 * factor
    mean, std = (numbers if isinstance(numbers, list | tuple) else (numbers,) * 3 for numbers in (mean, std))
    mean, std = (tuple(value / scale for value in numbers) for numbers in (mean, std))
    sizes = {"transforms.eval_size": size["shortest_edge"], "transforms.max_size": size["longest_edge"]}
    return {**sizes, "transforms.mean": mean, "transforms.std": std}, ()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of keys and values.

    Raises:
        WeightsError: It cannot be read, or holds something else.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected keys and values")
    return content


def _refuse(path: Path, name: str, got: Any, expected: str) -> NoReturn:
    """Raise the error that something asked for cannot be honoured."""
    raise WeightsError(
        f"{path}: {name} is {got!r}, expected {expected}; detrkit has no such model or preprocessing. "
        f"transformers itself runs it: detrkit eval hf:{path.parent}"
    )
