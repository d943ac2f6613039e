"""What to change, from what was measured; each sentence with the figure it comes from."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch

from detrkit.config import Config
from detrkit.profiling.flops import find_peak, peak_tflops, utilisation
from detrkit.profiling.instruments import AVERAGE, BACKWARD, FORWARD, MATCHING, NORMALIZE, OPTIMIZER, TRANSFER
from detrkit.profiling.measure import Measured
from detrkit.training.telemetry.bottleneck import advise as advise_on_loading

_MUCH_TO_COMPUTE = 0.5
_MUCH_OPTIMIZER, _MUCH_AVERAGE, _MUCH_MATCHING, _MUCH_MOVING = 0.15, 0.1, 0.1, 0.1
_MUCH_PADDING = 0.1
_MUCH_KEPT, _FULL, _EMPTY = 0.5, 0.5, 0.4
_IDLE = 0.2

Kind = Literal[
    "data", "precision", "memory", "recompute", "optimiser", "ema", "matching", "padding", "batch", "transfer"
]


@dataclasses.dataclass(frozen=True)
class Advice:
    """Something to change.

    Args:
        kind: What it is about.
        share: Of the step's time, of memory, of pixels or of the GPU's peak; what the sentence tells.
        sentence: What was measured, and what to do.
    """

    kind: Kind
    share: float
    sentence: str


def utilisation_of(config: Config, measured: Measured) -> float | None:
    """Share of the GPU's peak that training reaches; None on the CPU, and on a GPU that is not in the table."""
    if measured.device.type != "cuda":
        return None
    peak = find_peak(torch.cuda.get_device_name(measured.device))
    if peak is None:
        return None
    return utilisation(measured.flops, measured.step_s, peak_tflops(peak, config.train.precision))


def has_bf16(device: torch.device) -> bool:
    """Whether a device has units for bfloat16 arithmetic, which then is faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return bool(supported())


def advise(config: Config, measured: Measured) -> list[Advice]:
    """What to change, the greatest share first."""
    found = [
        _data(measured),
        _precision(config, measured),
        *_memory(config, measured),
        _batch(config, measured),
        _padding(config, measured),
        *_phases(config, measured),
    ]
    return sorted((item for item in found if item is not None), key=lambda item: -item.share)


def share_of(measured: Measured, prefix: str) -> float:
    """Share of the step that phases with a name beginning so take, the device waited for."""
    phases = measured.phases
    return sum(s for name, s in phases.items() if name.startswith(prefix)) / max(sum(phases.values()), 1e-12)


def _data(measured: Measured) -> Advice | None:
    if measured.loading is None:
        return None
    advice = advise_on_loading(measured.data_wait, measured.loading)
    return None if advice is None else Advice("data", measured.data_wait, advice.sentence)


def _precision(config: Config, measured: Measured) -> Advice | None:
    share = share_of(measured, FORWARD) + share_of(measured, BACKWARD)
    if config.train.precision != "32" or share < _MUCH_TO_COMPUTE or not has_bf16(measured.device):
        return None
    return Advice(
        "precision",
        share,
        f"forward and backward are {share:.0%} of the step, in float32 on a device with units for bfloat16: set "
        "train.precision=bf16, which in large models takes about half their time and half of the activations",
    )


def _memory(config: Config, measured: Measured) -> list[Advice | None]:
    memory = measured.memory
    if not memory.peak:
        return []
    kept, full = memory.kept / memory.peak, memory.peak / memory.limit
    if config.train.recompute and full < _EMPTY:
        sentence = (
            f"activations are computed twice although the peak fills {full:.0%} of the memory: set "
            "train.recompute=false, which saves about a quarter of the arithmetic"
        )
        return [Advice("recompute", full, sentence)]
    if kept < _MUCH_KEPT or config.train.recompute:
        return []
    largest = max(memory.activations, key=memory.activations.__getitem__)
    if full >= _FULL:
        lead = f"memory is {full:.0%} full at the peak, and {kept:.0%} of that are activations"
    else:
        lead = f"{kept:.0%} of the memory at the peak are activations"
    return [
        Advice(
            "memory",
            kept,
            f"{lead}, most of them of {largest.removeprefix(f'{FORWARD}: ')}: where memory is short, "
            "set train.recompute=true (about a third more arithmetic), or train.micro_batch below the "
            f"batch size of {config.train.batch_size} (same gradient)",
        )
    ]


def _batch(config: Config, measured: Measured) -> Advice | None:
    reached, memory = utilisation_of(config, measured), measured.memory
    if reached is None or reached >= _IDLE or memory.peak / memory.limit >= _FULL:
        return None
    return Advice(
        "batch",
        reached,
        f"the GPU reaches {reached:.0%} of its peak and {memory.peak / memory.limit:.0%} of its memory is used: "
        f"raise train.batch_size (now {config.train.batch_size}), and train.lr with its square root",
    )


def _padding(config: Config, measured: Measured) -> Advice | None:
    share = measured.padding
    if share < _MUCH_PADDING or config.data.buckets:
        return None
    norm = ", and group norm leaves them out at the cost of a second pass" if _has_group_norm(config) else ""
    return Advice(
        "padding",
        share,
        f"{share:.0%} of the pixels are padding, which is computed like any other{norm}: set data.buckets=true",
    )


def _has_group_norm(config: Config) -> bool:
    return config.model.backbone_norm == "group"


def _phases(config: Config, measured: Measured) -> list[Advice | None]:
    train, model = config.train, config.model
    optimizer, average = share_of(measured, OPTIMIZER), share_of(measured, AVERAGE)
    matching = share_of(measured, MATCHING)
    moving = share_of(measured, TRANSFER) + share_of(measured, NORMALIZE)
    images = train.batch_size * train.accumulate
    return [
        Advice(
            "optimiser",
            optimizer,
            f"the optimiser takes {optimizer:.0%} of the step whatever the number of images (now {images}): raise "
            "train.batch_size or train.accumulate",
        )
        if optimizer >= _MUCH_OPTIMIZER
        else None,
        Advice(
            "ema",
            average,
            f"averaging the weights takes {average:.0%} of the step: raise train.batch_size or train.accumulate, "
            "or set train.ema_decay=null",
        )
        if average >= _MUCH_AVERAGE
        else None,
        Advice(
            "matching",
            matching,
            f"matching takes {matching:.0%} of the step, on one CPU: it grows with model.num_queries (now "
            f"{model.num_queries}), the decoder's layers (now {model.decoder_layers}) and objects",
        )
        if matching >= _MUCH_MATCHING
        else None,
        Advice(
            "transfer",
            moving,
            f"bringing images to the device and normalising them takes {moving:.0%} of the step: smaller images "
            "(transforms.scales, transforms.max_size) or a model that does more with them would balance it",
        )
        if moving >= _MUCH_MOVING
        else None,
    ]
