"""AdamW with DETR's parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from detrkit.config import TrainConfig

# Words that mark a bare parameter (not a layer's weight) as an embedding.
_EMBEDDING_WORDS = ("embed", "query", "queries", "position")


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained.

    Parameters named ``backbone.*`` have their own learning rate. Norms, biases and embeddings have no weight
    decay; the published DETR decays them too, which pulls queries and positions to zero for no gain.
    Always fused: one kernel instead of hundreds, and the only kind that can skip a step without asking the
    device (:func:`apply_gradients`).
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter, decays in _trained_parameters(model):
        part = "backbone" if name.startswith("backbone.") else "model"
        groups.setdefault(part if decays else f"{part}_no_decay", []).append(parameter)
    rates = {"backbone": config.backbone_lr, "model": config.lr}
    return torch.optim.AdamW(
        [
            {
                "params": groups[name],
                "name": name,
                "lr": rates[name.split("_")[0]],
                "base_lr": rates[name.split("_")[0]],
                "weight_decay": 0.0 if name.endswith("no_decay") else config.weight_decay,
            }
            for name in sorted(groups)
        ],
        lr=config.lr,
        fused=True,
    )


def _trained_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter, bool]]:
    """Name, parameter and whether weight decay applies, each shared parameter once."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            bare = leaf not in ("weight", "in_proj_weight") and any(word in leaf for word in _EMBEDDING_WORDS)
            embedding = isinstance(module, nn.Embedding) or bare
            name = f"{module_name}.{leaf}" if module_name else leaf
            yield name, parameter, parameter.ndim > 1 and not embedding


def lr_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """What the base learning rates are multiplied by at a step; depends on nothing else, so resume is exact.

    Args:
        step: The optimiser step about to be made, from 0.
        total_steps: Steps of the whole training.
        config: Chooses linear warm-up and then a step drop, a cosine to zero, or a constant.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "step":
        return warmup * (config.drop_factor if step >= round(config.drop_at * total_steps) else 1.0)
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
        return warmup * 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return warmup


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every parameter group its base learning rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Current learning rate of ``model`` and, where it is trained, ``backbone``."""
    return {group["name"].split("_")[0]: float(group["lr"]) for group in optimizer.param_groups}


def apply_gradients(
    optimizer: torch.optim.AdamW, clip_norm: float, scaler: torch.amp.GradScaler | None = None
) -> Tensor:
    """Clip, then make the optimiser step, unless a gradient is not finite: then no weight changes.

    Nothing here waits for the device. ``found_inf`` is the flag by which torch's own GradScaler tells a fused
    optimiser to skip; set by hand it guards float32 and bfloat16 as well.

    Args:
        optimizer: A fused AdamW.
        clip_norm: Largest norm of all gradients together; 0 turns clipping off.
        scaler: Loss scaler of float16 training.

    Returns:
        The gradient norm before clipping, a scalar on the device.
    """
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
