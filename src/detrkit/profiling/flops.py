"""What share of a GPU's peak arithmetic a piece of work reaches (MFU, arXiv:2204.02311, appendix B)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """Dense peak of a GPU in TFLOP/s.

    Args:
        bf16: Matrix units in bfloat16 or float16, without sparsity.
        tf32: Matrix units in TF32.
        fp32: float32 outside the matrix units.
        source: Data sheet.
    """

    bf16: float
    tf32: float
    fp32: float
    source: str


# Data sheets print figures with sparsity for Hopper and Ada; these are half of those. Longer names first: the
# first that is in a device's name counts.
PEAKS: Mapping[str, Peak] = {
    "H200": Peak(989.5, 494.7, 67.0, "NVIDIA H200 data sheet, SXM"),
    "H100 NVL": Peak(835.5, 417.5, 60.0, "NVIDIA H100 data sheet, NVL"),
    "H100 PCIe": Peak(756.5, 378.0, 51.0, "NVIDIA H100 data sheet, PCIe"),
    "H100": Peak(989.5, 494.7, 67.0, "NVIDIA H100 data sheet, SXM"),
    "A100": Peak(312.0, 156.0, 19.5, "NVIDIA A100 data sheet"),
    "L40S": Peak(362.05, 183.0, 91.6, "NVIDIA L40S data sheet"),
    "L4": Peak(121.0, 60.0, 30.3, "NVIDIA L4 data sheet"),
    "V100": Peak(125.0, 15.7, 15.7, "NVIDIA V100 data sheet, SXM2: float16, no bfloat16 and no TF32"),
    "T4": Peak(65.0, 8.1, 8.1, "NVIDIA T4 data sheet: float16, no bfloat16 and no TF32"),
    "RTX 4090": Peak(165.2, 82.6, 82.6, "NVIDIA Ada GPU architecture, appendix A"),
    "RTX 3090": Peak(71.0, 35.6, 35.6, "NVIDIA Ampere GA102 GPU architecture, appendix A"),
}


def find_peak(device_name: str) -> Peak | None:
    """The peak of a GPU by the name that torch gives it; None if it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device_name)), None)


def peak_tflops(peak: Peak, precision: str) -> float:
    """The peak that arithmetic in a precision (``32``, ``bf16``, ``16``) is measured against.

    For float32 it is TF32's where torch may use it for matrix products or convolutions.
    """
    if precision in ("bf16", "16"):
        return peak.bf16
    return peak.tf32 if _may_use_tf32() else peak.fp32


def _may_use_tf32() -> bool:
    return torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32


def utilisation(flops: float, seconds: float, tflops: float) -> float:
    """Share of the peak that work reached, 0 to 1."""
    return flops / seconds / (tflops * 1e12)
