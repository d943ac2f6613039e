"""What can be measured: whatever a person names, as something whose detections can be had."""

from __future__ import annotations

import os

from detrkit.api.common import Source
from detrkit.config import Precision
from detrkit.detectors.detector import Detector
from detrkit.detectors.load import find_subject
from detrkit.detectors.stages import DetectorSubject, Subject


def find_target(
    model: Source | Detector | Subject,
    preset: str | None = None,
    device: str = "auto",
    precision: Precision = "32",
) -> Subject:
    """Return what a person named as something whose detections can be had."""
    if isinstance(model, Detector):
        return DetectorSubject(model.config.model.preset, model)
    if isinstance(model, str | os.PathLike):
        return find_subject(model, preset, device=device, precision=precision)
    return model
