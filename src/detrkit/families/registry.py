"""The families by name: what the rest of the house asks of a family, as plain functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detrkit.classes import ClassMap, SizeHW
from detrkit.config import AidsConfig, Config, ModelConfig
from detrkit.errors import UsageError
from detrkit.families import transfer
from detrkit.families.detr import model as detr_model
from detrkit.families.detr import parts as detr_parts
from detrkit.families.detr import weights as detr_weights
from detrkit.families.parts import Place
from detrkit.families.postprocess import postprocess
from detrkit.families.two_stage import model as two_stage_model
from detrkit.families.two_stage import parts as two_stage_parts
from detrkit.families.two_stage import weights as two_stage_weights
from detrkit.families.weights import LoadReport, Weights
from detrkit.losses.criterion import Criterion
from detrkit.nn.backbones.resnet import fold_frozen_norms
from detrkit.types import ImageDetections, Outputs


@dataclasses.dataclass(frozen=True)
class Family:
    """What every family can do.

    Args:
        build: Makes a model with random weights for so many label slots.
        add_aids: Gives a model what it has in training only.
        postprocess: Turns outputs into detections in pixels of the original images.
        read_weights: Reads a published checkpoint.
        load_exactly: Loads weights into the model they belong to.
        transfer: Loads what fits into another model.
        transfer_backbone: Loads ImageNet weights into the backbone.
        match_slots: Puts a data set's classes on a checkpoint's slots where the names are the same.
        part_of: Names the innermost part that a parameter, given by name, belongs to.
        depth_of: Counts the layers between a parameter and the detections.
        prepare_inference: Changes a model in place so that it only detects, but faster.
        write_published: Writes weights as the authors did.
        write_hub: Writes a folder for Hugging Face transformers.
    """

    build: Callable[[Any, int], nn.Module]
    add_aids: Callable[[nn.Module, ModelConfig, AidsConfig], None]
    postprocess: Callable[[Outputs, Sequence[SizeHW], ClassMap], list[ImageDetections]]
    read_weights: Callable[[str | Path, Any], Weights]
    load_exactly: Callable[[nn.Module, Weights], LoadReport]
    transfer: Callable[[nn.Module, Weights, ClassMap], LoadReport]
    transfer_backbone: Callable[[nn.Module, dict[str, Tensor], str, ClassMap], LoadReport]
    match_slots: Callable[[ClassMap, ClassMap], ClassMap]
    part_of: Callable[[str], str]
    depth_of: Callable[[str, ModelConfig], int]
    prepare_inference: Callable[[nn.Module], None]
    write_published: Callable[[str | Path, dict[str, Tensor]], None]
    write_hub: Callable[[str | Path, Weights, int, int], None]


FAMILIES: dict[str, Family] = {
    "detr": Family(
        build=detr_model.build_detr,
        add_aids=detr_model.add_aids,  # type: ignore[arg-type]
        postprocess=postprocess,
        read_weights=detr_weights.read_weights,
        load_exactly=transfer.load_exactly,
        transfer=transfer.transfer,
        transfer_backbone=transfer.transfer_backbone,
        match_slots=transfer.match_slots,
        part_of=detr_parts.part_of,
        depth_of=detr_parts.depth_of,
        prepare_inference=lambda model: fold_frozen_norms(model.backbone[0]),  # type: ignore[index,arg-type]
        write_published=detr_weights.write_published,
        write_hub=detr_weights.write_hub,
    ),
    "two_stage": Family(
        build=two_stage_model.build_two_stage,
        add_aids=two_stage_model.add_aids,  # type: ignore[arg-type]
        postprocess=postprocess,
        read_weights=two_stage_weights.read_weights,
        load_exactly=transfer.load_exactly,
        transfer=transfer.transfer,
        transfer_backbone=transfer.transfer_backbone,
        match_slots=transfer.match_slots,
        part_of=two_stage_parts.part_of,
        depth_of=two_stage_parts.depth_of,
        prepare_inference=lambda model: fold_frozen_norms(model.backbone[0]),  # type: ignore[index,arg-type]
        write_published=two_stage_weights.write_published,
        write_hub=two_stage_weights.write_hub,
    ),
}


def get_family(name: str) -> Family:
    """The family of a name.

    Raises:
        UsageError: There is none.
    """
    if name not in FAMILIES:
        raise UsageError(f"no model family is called {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def find_places(model: nn.Module, config: ModelConfig) -> dict[str, Place]:
    """The part and depth of each parameter of a model, by name."""
    family = get_family(config.family)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return {name: Place(family.part_of(name), family.depth_of(name, config)) for name in names}


def build_criterion(config: Config, class_map: ClassMap) -> Criterion:
    """The training loss of a model."""
    return Criterion(config.loss, class_map, config.model.num_queries, config.aids.dense)
