"""Advice on what to change, from what was measured; each sentence with the figure it comes from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Literal

import torch

from detrkit.config import Config
from detrkit.files import read_facts
from detrkit.hardware import has_fast_bf16
from detrkit.profiling.measure import FORWARD, Measured
from detrkit.training.telemetry.bottleneck import advise as advise_on_loading

_MUCH_TO_COMPUTE = 0.5
_MUCH_PADDING = 0.1
_MUCH_KEPT, _FULL, _EMPTY = 0.5, 0.5, 0.4
_IDLE = 0.2
_MUCH_OPTIMISER, _MUCH_OF_A_PHASE = 0.15, 0.1

Kind = Literal[
    "data", "precision", "memory", "recompute", "optimiser", "ema", "matching", "padding", "batch", "transfer"
]

# Dense peaks of NVIDIA GPUs in TFLOP/s, by their data sheets: matrix units in bfloat16 or float16, in TF32, and
# float32 outside of them. Sheets print figures with sparsity for Hopper and Ada; these are half of those. V100 and
# T4 have float16 only. Longer names first: the first that is in a device's name counts.
PEAKS: Mapping[str, tuple[float, float, float]] = read_facts(__file__)


@dataclasses.dataclass(frozen=True)
class Advice:
    """Something to change.

    Args:
        kind: Subject of the sentence.
        share: Share of the step's time, of memory, of pixels or of the GPU's peak; what the sentence tells.
        sentence: What was measured, and what to do.
    """

    kind: Kind
    share: float
    sentence: str


def peak_tflops(device_name: str, precision: str) -> float | None:
    """Return the peak that arithmetic in a precision (``32``, ``bf16``, ``16``) is measured against.

    For float32 it is TF32's where torch may use it for matrix products or convolutions. None for a GPU that is not
    in the table by the name that torch gives it.
    """
    peak = next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device_name)), None)
    if peak is None or precision in ("bf16", "16"):
        return None if peak is None else peak[0]
    return peak[1] if torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32 else peak[2]


def utilisation_of(config: Config, measured: Measured) -> float | None:
    """Return the share of the GPU's peak that training reaches (MFU, arXiv:2204.02311, appendix B), if known."""
    if measured.device.type != "cuda":
        return None
    tflops = peak_tflops(torch.cuda.get_device_name(measured.device), config.train.precision)
    return None if tflops is None else measured.flops / measured.step_s / (tflops * 1e12)


def has_bf16(device: torch.device) -> bool:
    """Tell whether a device has units for bfloat16 arithmetic, which then is faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_fast_bf16()


def advise(config: Config, measured: Measured) -> list[Advice]:
    """Return what to change, the greatest share first."""
    found = [*_computing(config, measured), *_memory(config, measured), *_phases(config, measured)]
    return sorted(found, key=lambda item: -item.share)


def share_of(measured: Measured, prefix: str) -> float:
    """Return the share of the step of phases with a name beginning so, the device waited for."""
    phases = measured.phases
    return sum(s for name, s in phases.items() if name.startswith(prefix)) / max(sum(phases.values()), 1e-12)


def _computing(config: Config, measured: Measured) -> Iterator[Advice]:
    """Advise on data, precision, batch size and padding."""
    train, memory = config.train, measured.memory
    loading = None if measured.loading is None else advise_on_loading(measured.data_wait, measured.loading)
    if loading is not None:
        yield Advice("data", measured.data_wait, loading.sentence)
    share = share_of(measured, FORWARD) + share_of(measured, "backward")
    if train.precision == "32" and share >= _MUCH_TO_COMPUTE and has_bf16(measured.device):
        yield Advice(
            "precision",
            share,
            f"forward and backward are {share:.0%} of the step, in float32 on a device with units for bfloat16: "
            "set train.precision=bf16, which in large models takes about half their time and half of the "
            "activations",
        )
    reached = utilisation_of(config, measured)
    if reached is not None and reached < _IDLE and memory.peak / memory.limit < _FULL:
        yield Advice(
            "batch",
            reached,
            f"the GPU reaches {reached:.0%} of its peak and {memory.peak / memory.limit:.0%} of its memory is "
            f"used: raise train.batch_size (now {train.batch_size}), and train.lr with its square root",
        )
    if measured.padding >= _MUCH_PADDING and not config.data.buckets:
        norm = ", and group norm leaves them out at the cost of a second pass"
        yield Advice(
            "padding",
            measured.padding,
            f"{measured.padding:.0%} of the pixels are padding, which is computed like any other"
            f"{norm if config.model.backbone_norm == 'group' else ''}: set data.buckets=true",
        )


def _memory(config: Config, measured: Measured) -> Iterator[Advice]:
    """Advise on recomputing."""
    memory = measured.memory
    if not memory.peak:
        return
    kept, full = memory.kept / memory.peak, memory.peak / memory.limit
    if config.train.recompute:
        if full < _EMPTY:
            yield Advice(
                "recompute",
                full,
                f"activations are computed twice although the peak fills {full:.0%} of the memory: set "
                "train.recompute=false, which saves about a quarter of the arithmetic",
            )
        return
    if kept < _MUCH_KEPT:
        return
    largest = max(memory.activations, key=memory.activations.__getitem__)
    lead = f"{kept:.0%} of the memory at the peak are activations"
    if full >= _FULL:
        lead = f"memory is {full:.0%} full at the peak, and {kept:.0%} of that are activations"
    yield Advice(
        "memory",
        kept,
        f"{lead}, most of them of {largest.removeprefix(f'{FORWARD}: ')}: where memory is short, set "
        "train.recompute=true (about a third more arithmetic), or train.micro_batch below the batch size of "
        f"{config.train.batch_size} (same gradient)",
    )


def _phases(config: Config, measured: Measured) -> Iterator[Advice]:
    """Advise on phases that take too much of the step."""
    train, model = config.train, config.model
    images = train.batch_size * train.accumulate
    more = "raise train.batch_size or train.accumulate"
    remedies: Mapping[Kind, str] = {
        "optimiser": f"the optimiser takes {{}} of the step whatever the number of images (now {images}): {more}",
        "ema": f"averaging the weights takes {{}} of the step: {more}, or set train.ema_decay=null",
        "matching": "matching takes {} of the step, on one CPU: it grows with model.num_queries (now "
        f"{model.num_queries}), the decoder's layers (now {model.decoder_layers}) and objects",
        "transfer": "bringing images to the device and normalising them takes {} of the step: smaller images "
        "(transforms.scales, transforms.max_size) or a model that does more with them would balance it",
    }
    for kind, sentence in remedies.items():
        phases = {"ema": ("EMA",), "transfer": ("transfer", "normalisation")}.get(kind, (kind,))
        share = sum(share_of(measured, phase) for phase in phases)
        if share >= (_MUCH_OPTIMISER if kind == "optimiser" else _MUCH_OF_A_PHASE):
            yield Advice(kind, share, sentence.format(f"{share:.0%}"))
