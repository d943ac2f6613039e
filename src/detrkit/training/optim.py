"""AdamW, and Muon, with DETR's parameter groups, and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.config import TrainConfig
from detrkit.errors import ConfigError
from detrkit.families.parts import MASK_HEAD, Places, is_inside, most_specific
from detrkit.training.muon import MuonAdamW, is_matrix

# Words that mark a bare parameter (not a layer's weight) as an embedding.
_EMBEDDING_WORDS = ("embed", "query", "queries", "position")


def build_optimizer(
    model: nn.Module, config: TrainConfig, places: Places | None = None, new: Collection[str] = ()
) -> torch.optim.AdamW:
    """Build AdamW over the parameters that are trained; with ``train.muon`` it leaves matrices to Muon.

    Parameters named ``backbone.*`` have their own learning rate; ``train.lr_scale`` and ``train.layer_decay``
    multiply both. Norms, biases and embeddings have no weight decay; the published DETR decays them too, which
    pulls queries and positions to zero for no gain. Always fused: one kernel instead of hundreds, and the only
    kind that can skip a step without asking the device (:func:`apply_gradients`).

    Args:
        model: Model, frozen already where it shall be.
        config: Learning rates and weight decay.
        places: Part and depth of each parameter; needed for ``lr_scale`` and ``layer_decay``.
        new: Names of parameters that start anew while the rest has pretrained weights, for ``head_steps``;
            what they were is kept in the optimiser's state (:func:`new_parameters`).

    Raises:
        ConfigError: No parameter is left to train.
    """
    groups: dict[str, dict[str, Any]] = {}
    trained = list(_trained_parameters(model))
    if not trained:
        raise ConfigError("nothing is left to train: every parameter is frozen; see train.freeze")
    # Without a pretrained rest there is nothing to hold still.
    apart = set(new) if config.head_steps and not {name for name, *_ in trained} <= set(new) else set()
    for name, parameter, decays, matrix in trained:
        label, rate = _rate(name, config, places)
        of_masks = bool(config.box_epochs) and places is not None and is_inside(places[name].part, MASK_HEAD)
        marks = ("_masks" if of_masks else "") + ("_new" if name in apart else "")
        # Muon is for maps inside a network; its authors leave outputs to AdamW
        heads = places is not None and "class_head" in places[name].part
        muon = config.muon if matrix and decays and not heads else 0.0
        key = label + marks + ("" if decays else "_no_decay") + ("_muon" if muon else "")
        group = groups.setdefault(
            key,
            {
                "params": [],
                "name": key,
                "lr": rate,
                "base_lr": rate,
                "weight_decay": config.weight_decay if decays else 0.0,
                "new": name in apart,
                "masks": of_masks,
                "muon": muon,
            },
        )
        group["params"].append((name, parameter))
    optimizer = MuonAdamW if config.muon else torch.optim.AdamW
    return optimizer([groups[key] for key in sorted(groups)], lr=config.lr, fused=True)


def new_parameters(optimizer_state: Mapping[str, Any]) -> frozenset[str]:
    """Return ``new`` of :func:`build_optimizer`, as a saved state of that optimiser has it."""
    groups = optimizer_state["param_groups"]
    return frozenset(name for group in groups if group.get("new") for name in group["param_names"])


def _rate(name: str, config: TrainConfig, places: Places | None) -> tuple[str, float]:
    """Return the name of a parameter's learning rate, and its value."""
    kind, rate = ("backbone", config.backbone_lr) if name.startswith("backbone.") else ("model", config.lr)
    if not config.lr_scale and config.layer_decay == 1.0:
        return kind, rate
    assert places is not None, "lr_scale and layer_decay need the places of the parameters"
    place = places[name]
    scaled = most_specific(place.part, config.lr_scale)
    factor = (config.lr_scale[scaled] if scaled else 1.0) * config.layer_decay**place.depth
    if factor == 1.0:
        return kind, rate
    return (place.part if config.layer_decay < 1.0 else scaled or kind), rate * factor


def _trained_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter, bool, bool]]:
    """Yield name, parameter, whether weight decay applies and whether it is a matrix, each shared one once."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            bare = leaf not in ("weight", "in_proj_weight") and any(word in leaf for word in _EMBEDDING_WORDS)
            embedding = isinstance(module, nn.Embedding) or bare
            name = f"{module_name}.{leaf}" if module_name else leaf
            yield name, parameter, parameter.ndim > 1 and not embedding, is_matrix(parameter, module)


def lr_factor(step: int, total_steps: int, config: TrainConfig, first_step: int = 0) -> float:
    """Return the factor of the base learning rates at a step; it depends on nothing else, so resume is exact.

    Args:
        step: Optimiser step about to be made, from 0.
        total_steps: Steps of the whole training.
        config: Schedule: linear warm-up and then a step drop, a cosine to zero, a late one to less, or a constant.
        first_step: Step at which learning and its warm-up begin; 0 before.
    """
    if step < first_step:
        return 0.0
    warmup_steps = count_warmup(total_steps, config)
    warmup = min(1.0, (step - first_step + 1) / warmup_steps) if warmup_steps else 1.0
    if config.schedule == "step":
        return warmup * (config.drop_factor if step >= round(config.drop_at * total_steps) else 1.0)
    if config.schedule == "cosine":
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return warmup * _half_cosine(progress)
    if config.schedule == "flat_cosine":
        progress = (step / max(total_steps, 1) - config.drop_at) / max(1 - config.drop_at, 1e-9)
        return warmup * (config.drop_factor + (1 - config.drop_factor) * _half_cosine(progress))
    return warmup


def _half_cosine(progress: float) -> float:
    """Return 1 at the beginning and before, 0 at the end."""
    return 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def count_warmup(total_steps: int, config: TrainConfig) -> int:
    """Return the steps of the warm-up: as configured, but no larger share of all than is allowed."""
    if config.warmup_share is None:
        return config.warmup_steps
    return min(config.warmup_steps, math.ceil(config.warmup_share * total_steps))


def set_lr(optimizer: torch.optim.Optimizer, factor: float, rest_factor: float | None = None) -> None:
    """Give every parameter group its base learning rate times ``factor``.

    Args:
        optimizer: Optimiser from :func:`build_optimizer`.
        factor: Factor of the learning rates.
        rest_factor: Factor of those that have pretrained weights, where others start anew. At 0 they rest: their
            gradients are dropped (:func:`apply_gradients`), and they work as in evaluation (:func:`train_mode`).
    """
    some_new = any(group.get("new") for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        rests = some_new and rest_factor is not None and not group.get("new")
        group["lr"] = group["base_lr"] * (rest_factor if rests else factor)


def set_step_lr(optimizer: torch.optim.Optimizer, step: int, total_steps: int, config: TrainConfig) -> None:
    """Set all learning rates for a step as the config says: :func:`lr_factor`, ``head_steps`` included.

    With ``box_epochs``, boxes and masks have a schedule each, one after the other. One of them rests; where it is
    the boxes' part, nothing is computed for its gradients.
    """
    if not config.box_epochs:
        rest_factor = lr_factor(step, total_steps, config, first_step=config.head_steps)
        set_lr(optimizer, lr_factor(step, total_steps, config), rest_factor)
        return
    box_steps = box_steps_of(total_steps, config)
    learns_boxes = step < box_steps
    if learns_boxes:
        set_step_lr(optimizer, step, box_steps, config.model_copy(update={"box_epochs": 0}))
    else:
        set_lr(optimizer, lr_factor(step - box_steps, total_steps - box_steps, config))
    for group in optimizer.param_groups:
        of_masks = group.get("masks", False)
        if of_masks == learns_boxes:
            group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.requires_grad_(learns_boxes or of_masks)


def box_steps_of(total_steps: int, config: TrainConfig) -> int:
    """Return the first steps of a training in which boxes alone are learned."""
    return total_steps // config.epochs * config.box_epochs


def train_mode(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put what learns into training mode, and every module whose parameters all rest into evaluation mode.

    A frozen part then does in training what it will do in detection: its batch norms use their running
    statistics and leave them alone, and its dropout is off.
    """
    learning = {
        id(parameter)
        for group in optimizer.param_groups
        if group["lr"] > 0
        for parameter in group["params"]
        if parameter.requires_grad
    }
    if _set_mode(model, learning):
        model.training = True


def _set_mode(module: nn.Module, learning: set[int]) -> bool | None:
    """Set the mode of everything inside a module; whether any of its parameters learns, None if it has none.

    Called at every step: modules that are right already are left alone, since setting is what takes time.
    """
    learns: bool | None = None
    for parameter in module._parameters.values():
        if parameter is not None:
            learns = bool(learns) or id(parameter) in learning
    inside = [(child, _set_mode(child, learning)) for child in module._modules.values() if child is not None]
    found = [state for _, state in inside if state is not None]
    if found:
        learns = bool(learns) or any(found)
    if learns:
        for child, state in inside:
            if child.training == (state is not False):
                continue
            if state:
                child.training = True
            else:
                child.train(state is None)
    return learns


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return current learning rates: of ``model`` and ``backbone``, where trained, and of parts with others."""
    return {
        group["name"].removesuffix("_muon").removesuffix("_no_decay"): float(group["lr"])
        for group in optimizer.param_groups
    }


def apply_gradients(
    optimizer: torch.optim.AdamW, clip_norm: float, scaler: torch.amp.GradScaler | None = None
) -> Tensor:
    """Clip, then make the optimiser step, unless a gradient is not finite: then no weight changes.

    Groups at a learning rate of 0 rest: without their gradients, neither their weights nor their moments
    change, and the norm is that of the others.

    Nothing here waits for the device. ``found_inf`` is the flag by which torch's own GradScaler tells a fused
    optimiser to skip; set by hand it guards float32 and bfloat16 as well.

    Args:
        optimizer: A fused AdamW.
        clip_norm: Largest norm of all gradients together; 0 turns clipping off.
        scaler: Loss scaler of float16 training.

    Returns:
        The gradient norm before clipping, a scalar on the device.
    """
    for group in optimizer.param_groups:
        if group["lr"] == 0:
            for parameter in group["params"]:
                parameter.grad = None
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if clip_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
        return norm
    optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
    return norm
