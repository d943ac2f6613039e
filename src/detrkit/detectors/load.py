"""detrkit's own models as detectors."""

from __future__ import annotations

import os
from typing import Literal

import torch

from detrkit.config import Precision
from detrkit.detectors.bundle import bundle_detector, split_runtime
from detrkit.detectors.detector import Detector
from detrkit.detectors.stages import model_stages
from detrkit.errors import UsageError, listed
from detrkit.families.build import load_model
from detrkit.families.family import BuiltModel
from detrkit.hardware import resolve_device
from detrkit.runtimes.contents import is_bundle


def load_detector(
    source: str | os.PathLike[str],
    preset: str | None = None,
    *,
    classes: str | os.PathLike[str] | None = None,
    device: str = "auto",
    precision: Precision = "32",
    padding: Literal["exact", "published"] | None = None,
) -> Detector:
    """Load one of detrkit's own models; see :func:`detrkit.load`.

    Args:
        source: Name, file or folder of the model.
        preset: Preset, ``model`` there.
        classes: Names of the head's rows.
        device: Device of the model.
        precision: Precision at work.
        padding: Treatment of padding.
    """
    if is_bundle(split_runtime(source)[0]):
        said = {"model": preset, "classes": classes, "padding": padding}
        if given := [name for name, value in said.items() if value is not None]:
            raise UsageError(f"{source} is a bundle, which holds its {listed(given)} itself; leave that out")
        return bundle_detector(source, device=device, precision=precision)
    loaded = load_model(source, preset, classes=classes, padding=padding)
    loaded.family.prepare_inference(loaded.model)
    return make_detector(loaded, device=device, precision=precision, name=os.fspath(source))


def make_detector(
    built: BuiltModel, *, device: str | torch.device = "auto", precision: Precision = "32", name: str = ""
) -> Detector:
    """Make a detector of a model in memory.

    Args:
        built: Model with its family, classes and config; its network is moved to ``device``.
        device: Device, as in :func:`detrkit.load`.
        precision: Precision, as in :func:`detrkit.load`.
        name: Name that people call it by; that of its preset if not given.
    """
    config, class_map = built.config, built.class_map
    return Detector(
        model_stages(built, resolve_device(device), precision),
        class_map,
        name=name or config.model.preset,
        config=config,
        settings=f"{config.model_dump_json()} {precision}",
        max_detections=config.train.max_detections,
    )
