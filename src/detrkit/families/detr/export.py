"""Writing DETR weights for other programs: as the authors published theirs, and for Hugging Face transformers."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from detrkit.config import Config
from detrkit.errors import WeightsError
from detrkit.families.detr.arguments import ARGUMENTS
from detrkit.families.detr.hub import HUB_KEYS, STUFF_KEY, UNUSED_LABEL
from detrkit.families.detr.layouts import LAYER_PARTS, PARTS, State, rename, set_box_prefix, split_attention
from detrkit.families.weights import Weights
from detrkit.files import atomic_bytes
from detrkit.nn.backbones import SMALL_BACKBONES

_OWN_TRANSFORMS = {"eval_size", "max_size", "mean", "std"}


def write_published(path: str | Path, state: Mapping[str, Tensor], config: Config | None = None) -> None:
    """Write weights as the authors' training script does: tensors under ``model``, the settings as ``args``.

    Args:
        path: A ``.pth`` file.
        state: Tensors by name.
        config: Their model; without it no ``args`` are written, as the published files have none.
    """
    payload: dict[str, Any] = {
        "model": {name: tensor.detach().cpu() for name, tensor in set_box_prefix(state).items()}
    }
    if config is not None:
        payload["args"] = _arguments(config, len(state["class_embed.weight"]) - 1)
    with writing(Path(path)) as file:
        torch.save(payload, file)


def write_hub(folder: str | Path, weights: Weights, config: Config) -> None:
    """Write a folder that Hugging Face transformers opens: safetensors, config and preprocessor config.

    Args:
        folder: Made if it is not there.
        weights: Tensors, model and classes.
        config: Preprocessing and loss weights; its model section is not read.

    Raises:
        WeightsError: The model has something that transformers' DETR does not have.
    """
    foreign = _foreign_to_hub(weights)
    if foreign:
        raise WeightsError(
            f"this model has {', '.join(foreign)}, which transformers' DETR does not have; "
            "use the published layout instead: --format published --out FILE.pth"
        )
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu() for name, tensor in published_to_hub(weights.state).items()}
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    with writing(folder / "model.safetensors") as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    transforms = config.transforms
    preprocessor = {
        "image_processor_type": "DetrImageProcessor",
        "format": "coco_panoptic" if weights.config.masks else "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": transforms.eval_size, "longest_edge": transforms.max_size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": transforms.mean,
        "image_std": transforms.std,
        "do_pad": True,
    }
    write_json(folder / "config.json", _hub_config(weights))
    write_json(folder / "preprocessor_config.json", preprocessor)


def published_to_hub(state: Mapping[str, Tensor]) -> State:
    """Return the same tensors under the hub's names, with timm's names in the backbone."""
    renamed: State = {}
    for name, tensor in state.items():
        new = rename(name, PARTS)
        layer = re.match(r"model\.(encoder|decoder)\.layers\.\d+\.", new)
        if layer:
            new = layer.group() + rename(new[layer.end() :], LAYER_PARTS[layer[1]])
        renamed[new] = tensor
    return set_box_prefix(split_attention(renamed))


def _foreign_to_hub(weights: Weights) -> list[str]:
    """Name what of a model transformers' DETR lacks, without which its weights are worth nothing."""
    config = weights.config
    found = []
    if not any(name.endswith("bn1.running_mean") for name in weights.state):
        found.append("group norm in its backbone (trained from scratch)")
    if config.backbone in SMALL_BACKBONES:
        found.append(f"the backbone {config.backbone}")
    options = ("pre_norm", "position_at_input", "query_reference")
    return found + [f"model.{name}" for name in options if getattr(config, name)]


def _arguments(config: Config, num_labels: int) -> dict[str, Any]:
    """Return the ``args`` of a model, from which it can be built again.

    A plain dict, where the authors' script has argparse's: ``torch.load`` opens it with its safety on, and neither
    that script nor torch.hub reads them.
    """
    dataset = {91: "coco", 250: "coco_panoptic"}.get(num_labels, "custom")
    values = {"dataset_file": dataset, "num_classes": num_labels}
    own = config.model_dump(include={"model": True, "loss": {"aux"}, "transforms": _OWN_TRANSFORMS})
    names = {key: name for name, key in ARGUMENTS.items()}
    keys = {f"{section}.{field}": value for section, fields in own.items() for field, value in fields.items()}
    return {**values, **{names.get(key, key): value for key, value in keys.items()}}


def _hub_config(weights: Weights) -> dict[str, Any]:
    model = weights.config.model_dump()
    labels = dict.fromkeys(range(weights.class_map.num_labels), UNUSED_LABEL)
    labels.update(zip(weights.class_map.logit_index, weights.class_map.names, strict=True))
    values = {name: model[field] for name, field in HUB_KEYS.items()}
    if model["activation"] == "gelu_tanh":
        values["activation_function"] = "gelu_pytorch_tanh"
    if weights.class_map.stuff:
        values[STUFF_KEY] = [weights.class_map.logit_index[class_id] for class_id in weights.class_map.stuff]
    return {
        "architectures": ["DetrForSegmentation" if model["masks"] else "DetrForObjectDetection"],
        "model_type": "detr",
        "backbone": model["backbone"],
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "dilation": model["dilation"],
        **values,
        "decoder_attention_heads": model["num_heads"],
        "decoder_ffn_dim": model["ffn_dim"],
        "attention_dropout": 0.0,
        "id2label": {str(index): label for index, label in labels.items()},
        # transformers keeps one slot per label, so the gaps must have distinct names here
        "label2id": {
            (label if label != UNUSED_LABEL else f"{label} {index}"): index for index, label in labels.items()
        },
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is whole or not there."""
    text = json.dumps(content, indent=2) + "\n"
    with writing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that is whole or not there, its errors in terms of weights."""
    try:
        with atomic_bytes(path) as file:
            yield file
    except (OSError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"cannot write {path}: {error}") from error
