"""What the verbs share: what a model may be given as, and the config that arguments resolve to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.config import Config, Precision
from detrkit.detectors.detector import Detector
from detrkit.detectors.load import find_subject
from detrkit.detectors.stages import DetectorSubject, Subject
from detrkit.families.recipes import resolve_config

Source = str | os.PathLike[str]


def find_target(
    model: Source | Detector | Subject, preset: str | None, device: str, precision: Precision
) -> Subject:
    """Return what a person named as something whose detections can be had."""
    if isinstance(model, Detector):
        return DetectorSubject(model.config.model.preset, model)
    if isinstance(model, str | os.PathLike):
        return find_subject(model, preset, device=device, precision=precision)
    return model


def resolved_config(
    model: str, config: str | Path | None, changes: Mapping[str, Any] | None, given: Mapping[str, Any]
) -> Config:
    """Return the preset with its recipe, the file over it, then changes, then the arguments that are given."""
    arguments = {key: value for key, value in given.items() if value is not None}
    return resolve_config(model, config, {**(changes or {}), **arguments})
