"""Folders of transformers with a real-time DETR: ``config.json`` and ``preprocessor_config.json``, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.config import TransformConfig
from detrkit.errors import WeightsError
from detrkit.families.detr.hub import UNUSED_LABEL, read_json
from detrkit.families.rtdetr.config import HybridConfig
from detrkit.files import read_facts

_FACTS = read_facts(__file__)
_KEYS: Mapping[str, str] = _FACTS["keys"]
_METHODS = {"bilinear": "default", "discrete": "discrete"}


def read_hub_config(folder: Path, model_type: str) -> tuple[dict[str, Any], dict[int, str]] | None:
    """Return fields of the model section and labels of the head that a folder names; None without ``config.json``.

    Raises:
        WeightsError: It is of another model, or asks for something that detrkit does not do.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    if config.get("model_type") != model_type:
        raise WeightsError(f"{path} is the config of a {config.get('model_type')} model, expected {model_type}")
    _check_fixed(config, _FACTS["fixed"], path)
    for part in ("attention_heads",):
        heads = {config[key] for key in (f"encoder_{part}", f"decoder_{part}") if key in config}
        if len(heads) > 1:
            raise WeightsError(f"{path}: encoder and decoder have {sorted(heads)} {part}, expected one number")
    fields = {field: config[key] for key, field in _KEYS.items() if key in config}
    points = config.get("decoder_n_points", 4)
    fields["points"] = points if isinstance(points, list) else [points] * fields.get("feature_levels", 3)
    method = config.get("decoder_method", "default")
    fields["sampling"] = next((name for name, theirs in _METHODS.items() if theirs == method), method)
    labels = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    return fields, labels


def read_hub_preprocessing(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return preprocessing by key of a config, and what had to be assumed.

    Raises:
        WeightsError: It is another one than squares of pixels of 0 to 1, normalised or not.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}, (f"it has no {path.name}: squares of 640 pixels, 0 to 1, are assumed",)
    values = read_json(path)
    _check_fixed(values, _FACTS["preprocessor"], path)
    size = values.get("size") or {}
    if not size.get("height") or size.get("height") != size.get("width"):
        raise WeightsError(f"{path}: size is {size}, expected the same height and width")
    side = int(size["height"])
    usual = TransformConfig()
    normalize = values.get("do_normalize", False)
    mean, std = (values.get(f"image_{name}", getattr(usual, name)) for name in ("mean", "std"))
    return {
        "transforms.eval_size": side,
        "transforms.max_size": side,
        "transforms.keep_aspect": False,
        "transforms.mean": tuple(mean) if normalize else (0.0, 0.0, 0.0),
        "transforms.std": tuple(std) if normalize else (1.0, 1.0, 1.0),
    }, ()


def hub_config(config: HybridConfig, labels: Mapping[int, str], num_labels: int) -> dict[str, Any]:
    """Return what ``config.json`` says of every real-time DETR."""
    names = {index: labels.get(index, UNUSED_LABEL) for index in range(num_labels)}
    model = config.model_dump()
    layers = config.eval_layers or config.decoder_layers
    return {
        **{key: model[field] for key, field in _KEYS.items()},
        **_FACTS["fixed"],
        "positional_encoding_temperature": int(config.position_temperature),
        "decoder_layers": layers,
        "decoder_n_points": config.points[0] if len(set(config.points)) == 1 else list(config.points),
        "decoder_method": _METHODS[config.sampling],
        "decoder_in_channels": [config.encoder_dim] * config.feature_levels,
        "feat_strides": level_strides(config.feature_levels),
        "encode_proj_layers": [config.feature_levels - 1],
        "freeze_backbone_batch_norms": config.backbone_norm == "frozen",
        "id2label": {str(index): name for index, name in names.items()},
        "label2id": {name if name != UNUSED_LABEL else f"{name} {index}": index for index, name in names.items()},
    }


def level_strides(levels: int) -> list[int]:
    """Return the pixels that a cell of each feature map covers, as in all published models."""
    return [32 >> level for level in reversed(range(levels))]


def hub_preprocessor(transforms: TransformConfig) -> dict[str, Any]:
    """Return ``preprocessor_config.json`` of a real-time DETR."""
    return {
        "image_processor_type": "RTDetrImageProcessor",
        "format": "coco_detection",
        **_FACTS["preprocessor"],
        "rescale_factor": 1 / 255,
        "size": {"height": transforms.eval_size, "width": transforms.eval_size},
        "do_normalize": transforms.std != (1.0, 1.0, 1.0) or any(transforms.mean),
        "image_mean": transforms.mean,
        "image_std": transforms.std,
    }


def _check_fixed(values: Mapping[str, Any], fixed: Mapping[str, Any], path: Path) -> None:
    for name, usual in fixed.items():
        if values.get(name, usual) not in (usual, None):
            raise WeightsError(
                f"{path}: {name} is {values[name]!r}, expected {usual!r}; detrkit has no such model or "
                f"preprocessing. transformers itself runs it: detrkit eval hf:{path.parent}"
            )
