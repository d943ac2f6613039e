"""Weights of D-FINE: its names, and what its tensors and its folders on the hub say besides RT-DETR's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detrkit.errors import WeightsError
from detrkit.families.dfine.config import DFineConfig
from detrkit.families.dfine.model import build_dfine
from detrkit.families.dfine.presets import PRESETS
from detrkit.families.rtdetr.layouts import SHARED, Layouts
from detrkit.families.rtdetr.weights import Published, count_modules
from detrkit.files import read_facts
from detrkit.nn.backbones.hgnet import HGNETS, hgnet_sizes

_FACTS = read_facts(__file__)


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    stem = "backbone.0.body.conv1."
    sizes = tuple(len(state[f"{stem}{part}.conv.weight"]) for part in ("stem1", "stem4"))
    backbone = next((name for name in HGNETS if hgnet_sizes(name)[0] == sizes), None)
    if backbone is None:
        raise WeightsError(f"the backbone's stem has {sizes} channels, expected one of {', '.join(HGNETS)}")
    block = "pyramid.fpn_blocks.0.csp_rep1."
    levels = count_modules(state, "pyramid.input_proj.") + count_modules(state, "pyramid.extra.")
    points = (6, 6) if levels == 2 else (3, 6, 3)
    return {
        "backbone": backbone,
        "fusion_blocks": count_modules(state, f"{block}bottlenecks."),
        "points": points,
        # 12 points a head in all; with others, nothing would tell their number
        "num_heads": len(state["decoder.layers.0.cross_attn.attention_weights.weight"]) // sum(points),
        "edge_scale": float(state["decoder.scale"]),
    }


def _hub_backbone(config: DFineConfig) -> tuple[dict[str, Any], list[int]]:
    (inner, out), stages, scaled = hgnet_sizes(config.backbone)
    outputs = [stage.out for stage in stages]
    return {
        "model_type": "hgnet_v2",
        "stem_channels": [3, inner, out],
        "stage_in_channels": [out, *outputs[:-1]],
        "stage_mid_channels": [stage.mid for stage in stages],
        "stage_out_channels": outputs,
        "hidden_sizes": outputs,
        "stage_num_blocks": [stage.blocks for stage in stages],
        "stage_light_block": [stage.light for stage in stages],
        "stage_kernel_size": [stage.kernel for stage in stages],
        "stage_numb_of_layers": [stage.layers for stage in stages],
        "use_learnable_affine_block": scaled,
        "out_indices": [2, 3, 4][-config.feature_levels :],
    }, outputs


def _hub_extra(config: DFineConfig) -> dict[str, Any]:
    return {
        "reg_scale": config.edge_scale,
        "depth_mult": config.fusion_blocks / 3,
        "layer_scale": 1,
        "max_num_bins": 32,
        "up": 0.5,
    }


DFINE_WEIGHTS = Published(
    "d_fine",
    "DFineForObjectDetection",
    Layouts((*_FACTS["names"], *SHARED), _FACTS["memory"], _FACTS["inside"]),
    PRESETS,
    build_dfine,
    _infer,
    _hub_backbone,
    _hub_extra,
    ("num_points_scale", "num_points_scale"),
)
