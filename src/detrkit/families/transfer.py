"""Putting weights into a model that may differ from the one they come from; the same for every family."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.classes import ClassMap
from detrkit.errors import WeightsError, listed
from detrkit.families.weights import LoadReport, Weights

# Class heads, by the name that they have in every family, and what noised objects are made from.
_HEAD = re.compile(r"(?:.*\.)?class_embed\.(?:\d+\.)?(?:weight|bias)|label_embed\.weight")
_BODY = "backbone.0.body."


def match_logit_index(data_classes: ClassMap, weights_classes: ClassMap) -> ClassMap:
    """Put a data set's classes on the checkpoint's slots where both have the same names.

    A published checkpoint that goes on with COCO's classes thus keeps its head of 91 slots untouched; any other
    set of classes gets a head of its own.
    """
    logit_by_name = _logit_by_name(weights_classes)
    names = [_key(name) for name in data_classes.names]
    if len(set(names)) != len(names) or set(names) != set(logit_by_name):
        return data_classes
    logit_index = tuple(logit_by_name[name] for name in names)
    return dataclasses.replace(data_classes, logit_index=logit_index, num_labels=weights_classes.num_labels)


def load_exactly(model: nn.Module, weights: Weights) -> LoadReport:
    """Load a checkpoint into the model it belongs to.

    Raises:
        WeightsError: A tensor is missing, left over or of another shape.
    """
    own = model.state_dict()
    problems = misfits(own, weights.state)
    if problems:
        raise WeightsError(f"{weights.source} does not fit the model: {listed(problems, 4, '; ')}")
    model.load_state_dict(weights.state)
    return LoadReport(weights.source, loaded=tuple(own))


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Name what is missing, unknown or of another shape in tensors that shall be a model's own."""
    shapes = [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    missing, left_over = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    return [f"missing {name}" for name in missing] + [f"unknown {name}" for name in left_over] + shapes


def transfer(model: nn.Module, weights: Weights, class_map: ClassMap, extra_rows: int = 1) -> LoadReport:
    """Load what fits, for fine-tuning and transfer learning; never raises on a misfit, but reports it.

    Rows of the class head follow their class's name. Blocks that a deeper backbone has and the checkpoint does not
    start as the identity: their last convolution is zeroed, so that a ResNet-101 initialised from a ResNet-50
    first computes exactly what the ResNet-50 did.

    Args:
        model: Changed in place.
        weights: Where the values come from.
        class_map: Classes and slots of the model's head.
        extra_rows: Rows of class heads behind those of the slots, for no-object.
    """
    own = model.state_dict()
    loaded: list[str] = []
    replaced: dict[str, str] = {}
    carried: tuple[str, ...] = ()
    same_head = class_map.num_labels == weights.class_map.num_labels and (
        _logit_by_name(class_map) == _logit_by_name(weights.class_map)
    )
    for name, tensor in own.items():
        given = weights.state.get(name)
        if given is None:
            continue
        if _HEAD.fullmatch(name) and not same_head:
            extra = 1 if name.startswith("label_embed") else extra_rows
            carried = _carry_rows(tensor, given, class_map, weights.class_map, extra)
            before, now = (rows.shape[0] - extra for rows in (given, tensor))
            replaced[name] = f"{before} labels before, {now} now"
        elif given.shape != tensor.shape:
            replaced[name] = f"shape {tuple(given.shape)} before, {tuple(tensor.shape)} now"
        else:
            own[name] = given
            loaded.append(name)
    model.load_state_dict(own)
    missing = tuple(name for name in own if name not in weights.state)
    return LoadReport(
        weights.source,
        loaded=tuple(loaded),
        replaced=replaced,
        missing=missing,
        left_over=tuple(name for name in weights.state if name not in own),
        carried=() if same_head else carried,
        new_classes=() if same_head else tuple(name for name in class_map.names if name not in carried),
        notes=_start_new_blocks_as_identity(model, missing),
    )


def transfer_backbone(model: nn.Module, state: dict[str, Tensor], source: str, class_map: ClassMap) -> LoadReport:
    """Load torchvision's ImageNet weights into the backbone; everything else starts anew."""
    own = model.state_dict()
    fitting = {
        _BODY + name: tensor
        for name, tensor in state.items()
        if _BODY + name in own and own[_BODY + name].shape == tensor.shape
    }
    if not fitting:
        raise WeightsError(f"{source} holds no ResNet weights that fit this backbone; expected torchvision's file")
    model.load_state_dict({**own, **fitting})
    ignored = {name for name in state if name.startswith("fc.") or name.endswith("num_batches_tracked")}
    return LoadReport(
        source,
        loaded=tuple(fitting),
        missing=tuple(name for name in own if name not in fitting),
        left_over=tuple(name for name in state if _BODY + name not in fitting and name not in ignored),
        new_classes=class_map.names,
    )


@torch.no_grad()
def _carry_rows(
    tensor: Tensor, given: Tensor, class_map: ClassMap, old: ClassMap, extra_rows: int
) -> tuple[str, ...]:
    """Copy the rows of classes that share a name, and of no-object, into ``tensor``; names that were found."""
    old_index = _logit_by_name(old)
    found = []
    for name, index in zip(class_map.names, class_map.logit_index, strict=True):
        if _key(name) in old_index:
            tensor[index] = given[old_index[_key(name)]]
            found.append(name)
    tensor[len(tensor) - extra_rows :] = given[len(given) - extra_rows :]
    return tuple(found)


@torch.no_grad()
def _start_new_blocks_as_identity(model: nn.Module, missing: tuple[str, ...]) -> tuple[str, ...]:
    pattern = re.compile(r"backbone\.0\.body\.(layer\d+)\.(\d+)\.conv1\.weight")
    blocks = [match.groups() for match in map(pattern.fullmatch, missing) if match]
    for stage, number in blocks:
        block: Any = model.get_submodule(f"backbone.0.body.{stage}.{number}")
        last = block.conv3 if hasattr(block, "conv3") else block.conv2
        if block.downsample is None:
            last.weight.zero_()
    if not blocks:
        return ()
    return (f"{len(blocks)} backbone blocks are new and start as the identity",)


def _logit_by_name(class_map: ClassMap) -> dict[str, int]:
    return {_key(name): index for name, index in zip(class_map.names, class_map.logit_index, strict=True)}


def _key(name: str) -> str:
    return " ".join(name.casefold().split())
