"""Reading and writing weights of real-time DETRs: the authors' files and the hub's folders.

Shapes say what they can; ``config.json`` or the preset that fits best says the rest. The authors' files hold
averaged weights too, which are those that they published.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from detrkit.classes import COCO_CATEGORY_IDS, COCO_NAMES, ClassMap
from detrkit.config import Config, update_config
from detrkit.errors import ConfigError, WeightsError, listed
from detrkit.families.detr.export import write_json, writing
from detrkit.families.detr.hub import UNUSED_LABEL
from detrkit.families.detr.state_files import read_file, read_folder
from detrkit.families.detr.weights import tensor_fault
from detrkit.families.preset import Preset
from detrkit.families.rtdetr.config import HybridConfig, RTDetrConfig
from detrkit.families.rtdetr.hub import (
    hub_config,
    hub_preprocessor,
    level_strides,
    read_hub_config,
    read_hub_preprocessing,
)
from detrkit.families.rtdetr.layouts import RTDETR_LAYOUTS, Layouts
from detrkit.families.rtdetr.model import build_rtdetr
from detrkit.families.rtdetr.presets import PRESETS
from detrkit.families.transfer import misfits
from detrkit.families.two_stage.model import EDGE
from detrkit.families.weights import Weights
from detrkit.nn.backbones import infer_backbone
from detrkit.nn.selection import locate_cells

_BODY = "backbone.0.body."
_STATES = ("ema", "model", "state_dict", "model_state_dict")


@dataclasses.dataclass(frozen=True)
class Published:
    """How weights of a family are published.

    Args:
        model_type: As transformers calls it.
        architecture: Class of transformers.
        layouts: Names of tensors.
        presets: Of the family.
        build: Makes its network.
        infer: Tells fields of its model from tensors, beside those that all have.
        hub_backbone: Says of a backbone what ``config.json`` does, and its channels.
        buffer: Name of the buffer that attention of transformers and of the authors has besides.
    """

    model_type: str
    architecture: str
    layouts: Layouts
    presets: Mapping[str, Preset]
    build: Callable[[Any, int], nn.Module]
    infer: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    hub_backbone: Callable[[Any], tuple[dict[str, Any], list[int]]]
    hub_extra: Callable[[Any], dict[str, Any]] = lambda _: {}
    buffers: tuple[str, str] = ("num_points_scale", "n_points_scale")

    def recognize(self, names: Collection[str]) -> bool:
        """Return whether tensors of such names are of this family."""
        heads = {"model.enc_score_head.weight", "decoder.enc_score_head.weight"}
        refines = any("lqe_layers" in name for name in names)
        return bool(heads & set(names)) and refines == (self.model_type == "d_fine")

    def read(self, path: str | Path, model: Any, overrides: Mapping[str, Any]) -> Weights:
        """Read weights; as :func:`detrkit.families.detr.weights.read_weights`."""
        path = Path(path)
        state = self.layouts.to_own(read_folder(path) if path.is_dir() else read_file(path, _STATES)[0])
        if "token_heads.class_embed.weight" not in state or "decoder.layers.0.linear1.weight" not in state:
            some = listed(list(state), 3)
            raise WeightsError(f"{path} is not a {self.architecture}, or not a whole one; it holds {some}")
        for name, tensor in state.items():
            if fault := tensor_fault(name, tensor):
                raise WeightsError(f"{path} is damaged: {name} {fault}")
        folder = path if path.is_dir() else path.parent
        hub = read_hub_config(folder, self.model_type) if path.is_dir() or path.suffix == ".safetensors" else None
        fields, labels = hub or ({}, {})
        config = self._config(state, fields, dict(overrides), model, path)
        with torch.device("meta"):
            own = self.build(config, len(state["token_heads.class_embed.weight"])).state_dict()
        if faults := misfits(own, state):
            raise WeightsError(f"{path} does not hold a whole {config.preset}: {listed(faults, 4, '; ')}")
        settings, notes = read_hub_preprocessing(folder) if hub else ({}, ())
        return Weights(state, config, _classes(state, labels), str(path), settings, notes)

    def _config(
        self, state: Mapping[str, Tensor], said: dict[str, Any], overrides: dict[str, Any], wanted: Any, path: Path
    ) -> Any:
        """Return the model that tensors belong to: by shapes, by words, and by the preset that is nearest."""
        found = {**infer_fields(state), **self.infer(state)}
        for name, value in found.items():
            given = said.get(name, value)
            if given != value and list(given if isinstance(given, list) else [given]) != list(
                value if isinstance(value, tuple) else [value]
            ):
                raise WeightsError(f"{path}: config.json says {name} {said[name]}, but its tensors {value}")
            if wanted is not None and name not in overrides and getattr(wanted, name) != value:
                raise WeightsError(
                    f"{path} holds a model with {name} {value}, but {wanted.preset} has {getattr(wanted, name)}; "
                    "leave the model out to take what the file says"
                )
        fits = {name: preset.config() for name, preset in self.presets.items()}
        nearest = max(
            fits.values(), key=lambda config: sum(getattr(config.model, name) == found[name] for name in found)
        )
        base = Config(model=wanted) if wanted is not None else nearest
        norm = _infer_norm(state)
        said = {name: value for name, value in said.items() if name not in found}
        frozen = base.model.frozen_stages if norm == "frozen" else 0
        changes = {**found, **said, "backbone_norm": norm, "frozen_stages": frozen, **overrides}
        if said and "eval_layers" not in changes:  # transformers' detect with all layers that they have
            changes["eval_layers"] = None
        try:
            return update_config(base, {"model": changes}).model
        except ConfigError as error:
            raise WeightsError(f"{path} cannot be honoured: {error}") from error

    def write_native(self, path: str | Path, state: dict[str, Tensor], config: Config) -> None:
        """Write weights under the authors' names, under ``model``, with all that their model has."""
        found = self.layouts.from_own(state, "native") | self._buffers(state, "native")
        # what theirs keeps in two places, and anchors of the tokens of an image of its size
        shared = [name for name in found if name in ("decoder.decoder.up", "decoder.decoder.reg_scale")]
        found |= {name.replace("decoder.", "", 1): found[name] for name in shared}
        levels = infer_fields(state)["feature_levels"]
        sides = [config.transforms.eval_size // stride for stride in level_strides(levels)]
        anchors = locate_cells([(side, side) for side in sides], [None] * len(sides), torch.device("cpu")).anchors
        inside = ((anchors > EDGE) & (anchors < 1 - EDGE)).all(-1, keepdim=True)
        found["decoder.valid_mask"] = inside
        found["decoder.anchors"] = anchors.logit().masked_fill(~inside, torch.inf)
        with writing(Path(path)) as file:
            torch.save({"model": {name: tensor.detach().cpu() for name, tensor in found.items()}}, file)

    def write_hub(self, folder: str | Path, weights: Weights, config: Config) -> None:
        """Write a folder that transformers opens.

        Where some decoder layers only train others, they are left out: transformers would detect with them.

        Raises:
            WeightsError: The model has something that transformers' model does not have.
        """
        folder, model = Path(folder), weights.config
        assert isinstance(model, HybridConfig)
        if _infer_norm(weights.state) == "group" or not model.backbone.startswith(("resnet", "hgnet")):
            raise WeightsError(
                f"this model has {model.backbone_norm} norms and the backbone {model.backbone}, which "
                f"transformers' {self.architecture} does not have; use --format published"
            )
        backbone, channels = self.hub_backbone(model)
        named = dict(zip(weights.class_map.logit_index, weights.class_map.names, strict=True))
        content = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "backbone_config": backbone,
            "encoder_in_channels": channels[-model.feature_levels :],
            **hub_config(model, named, weights.class_map.num_labels),
            **self.hub_extra(model),
        }
        state = {name: tensor for name, tensor in weights.state.items() if _detects(name, model)}
        tensors = self.layouts.from_own(state, "hub") | self._buffers(state, "hub")
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        with writing(folder / "model.safetensors") as file:
            file.write(save(tensors, metadata={"format": "pt"}))
        write_json(folder / "config.json", content)
        write_json(folder / "preprocessor_config.json", hub_preprocessor(config.transforms))

    def _buffers(self, state: Mapping[str, Tensor], layout: Any) -> dict[str, Tensor]:
        """Return the buffers of deformable attention that follow from the points of its levels."""
        found = {}
        model = infer_fields(state) | self.infer(state)
        scale = torch.tensor([1 / count for count in model["points"] for _ in range(count)])
        end = "sampling_offsets.weight"
        for name in state:
            if name.endswith(end):
                renamed = self.layouts.rename(name, "own", layout).removesuffix(end)
                found[renamed + self.buffers[layout == "hub"]] = scale
        return found


def infer_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return fields of the model section that all real-time DETRs' tensors tell."""
    fields = {
        "hidden_dim": state["token_proj.weight"].shape[0],
        "encoder_dim": state["pyramid.input_proj.0.conv.weight"].shape[0],
        "ffn_dim": state["decoder.layers.0.linear1.weight"].shape[0],
        "encoder_layers": count_modules(state, "pyramid.encoder.layers."),
        "decoder_layers": count_modules(state, "decoder.layers."),
        "feature_levels": count_modules(state, "pyramid.input_proj.") + count_modules(state, "pyramid.extra."),
    }
    if fields["encoder_layers"]:
        fields["encoder_ffn_dim"] = state["pyramid.encoder.layers.0.linear1.weight"].shape[0]
    return fields


def count_modules(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many modules of a list a state dict has."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, state) if match), default=-1)


def _infer_rtdetr(state: Mapping[str, Tensor]) -> dict[str, Any]:
    block = "pyramid.fpn_blocks.0."
    levels = infer_fields(state)["feature_levels"]
    return {
        # a head has 4 points in each level; with others, nothing would tell their number
        "num_heads": len(state["decoder.layers.0.cross_attn.attention_weights.weight"]) // (4 * levels),
        "points": (4,) * levels,
        "backbone": infer_backbone(state, _BODY),
        "expansion": state[f"{block}conv1.conv.weight"].shape[0]
        / state["pyramid.input_proj.0.conv.weight"].shape[0],
        "fusion_blocks": count_modules(state, f"{block}bottlenecks."),
    }


def _infer_norm(state: Mapping[str, Tensor]) -> str:
    body = [name for name in state if name.startswith(_BODY)]
    if not any(name.endswith("running_mean") for name in body):
        return "group"
    return "batch" if any(name.endswith("num_batches_tracked") for name in body) else "frozen"


def _detects(name: str, model: HybridConfig) -> bool:
    match = re.match(r"decoder\.\w+\.(\d+)\.", name)
    return not match or model.eval_layers is None or int(match[1]) < model.eval_layers


def _classes(state: Mapping[str, Tensor], labels: Mapping[int, str]) -> ClassMap:
    """Return the classes of the head: as the file names them, COCO's if there are 80, or numbers."""
    rows = len(state["token_heads.class_embed.weight"])
    if any(name != f"LABEL_{index}" for index, name in labels.items()):
        named = {index: labels.get(index, f"class_{index}") for index in range(rows)}
        named = {index: name for index, name in named.items() if name != UNUSED_LABEL}
        return ClassMap(tuple(named.values()), tuple(named), logit_index=tuple(named), num_labels=rows)
    say = "if they are others, say --classes FILE (COCO JSON, or a name a line)"
    if rows == len(COCO_NAMES):
        guessed = f"the file holds no class names; its 80 rows are called as COCO's categories; {say}"
        return ClassMap(COCO_NAMES, COCO_CATEGORY_IDS, guessed=guessed)
    guessed = f"the file holds no class names; its {rows} rows are called class_0, class_1, ...; {say}"
    return ClassMap(tuple(f"class_{row}" for row in range(rows)), tuple(range(rows)), guessed=guessed)


_RESNETS = {
    "resnet18vd": ("basic", [2, 2, 2, 2]),
    "resnet34vd": ("basic", [3, 4, 6, 3]),
    "resnet50vd": ("bottleneck", [3, 4, 6, 3]),
    "resnet101vd": ("bottleneck", [3, 4, 23, 3]),
}


def _hub_resnet(config: RTDetrConfig) -> tuple[dict[str, Any], list[int]]:
    kind, depths = _RESNETS[config.backbone]
    channels = [(64 if kind == "basic" else 256) << stage for stage in range(4)]
    return {
        "model_type": "rt_detr_resnet",
        "layer_type": kind,
        "depths": depths,
        "hidden_sizes": channels,
        "out_indices": [2, 3, 4],
    }, channels


RTDETR_WEIGHTS = Published(
    "rt_detr_v2", "RTDetrV2ForObjectDetection", RTDETR_LAYOUTS, PRESETS, build_rtdetr, _infer_rtdetr, _hub_resnet
)
