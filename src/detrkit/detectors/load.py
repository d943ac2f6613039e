"""From what a person calls a model to something that detects: detrkit's own, another toolkit's, or a file."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any, Literal

from detrkit.config import Precision
from detrkit.detectors.detector import Detector
from detrkit.detectors.results import ResultsSubject, is_results_file
from detrkit.detectors.stages import DetectorSubject, Subject
from detrkit.errors import CheckpointError, DetrkitError, UsageError, WeightsError
from detrkit.families.build import load_model
from detrkit.families.presets import PRESETS
from detrkit.families.registry import get_family

Source = str | os.PathLike[str]

TORCHVISION = "torchvision:"
TRANSFORMERS = "hf:"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

logger = logging.getLogger(__name__)


def find_subject(
    source: Source, preset: str | None = None, *, device: str = "auto", precision: Precision = "32"
) -> Subject:
    """Whatever a source names, ready to detect.

    Args:
        source: Anything that :func:`detrkit.load` takes; ``torchvision:NAME``, with ``@FILE`` or ``@random``
            behind it for other weights than the published; ``hf:ID`` or ``hf:FOLDER`` of a transformers model;
            or a ``.json`` file of detections in COCO's result format.
        preset: Preset of detrkit's weights, where the file cannot tell.
        device: As in :func:`detrkit.load`.
        precision: As in :func:`detrkit.load`.

    Raises:
        UsageError: The source is nothing that is known, or its toolkit is not installed.
        DetrkitError: It cannot be fetched or read.
    """
    text = os.fspath(source)
    foreign = text.startswith((TORCHVISION, TRANSFORMERS)) or is_results_file(text)
    if foreign and preset is not None:
        raise UsageError(f"{text} is not one of detrkit's models, so that preset {preset} says nothing of it")
    if text.startswith(TORCHVISION):
        from detrkit.detectors.torchvision import torchvision_subject

        return torchvision_subject(text.removeprefix(TORCHVISION), device=device, precision=precision)
    if text.startswith(TRANSFORMERS):
        return _of_transformers(text.removeprefix(TRANSFORMERS), device, precision)
    if is_results_file(text):
        return ResultsSubject(text)
    # Exported bundles are told from folders of weights here, once there are any.
    try:
        return DetectorSubject(text, load_detector(text, preset, device=device, precision=precision))
    except CheckpointError:
        raise
    except (UsageError, WeightsError) as error:
        if preset is None and _detects_in_transformers(text):
            logger.warning("detrkit has no such model, so transformers runs it, as %s%s", TRANSFORMERS, text)
            return _of_transformers(text, device, precision)
        raise _with_hint(error, text) from error


def load_detector(
    source: Source,
    preset: str | None = None,
    *,
    device: str = "auto",
    precision: Precision = "32",
    padding: Literal["exact", "published"] | None = None,
) -> Detector:
    """One of detrkit's own models; see :func:`detrkit.load`.

    Args:
        source: As there.
        preset: As ``model`` there.
        device: As there.
        precision: As there.
        padding: As there.
    """
    loaded = load_model(source, preset, padding=padding)
    family = get_family(loaded.config.model.family)
    family.prepare_inference(loaded.model)
    return Detector(
        loaded.model,
        loaded.class_map,
        loaded.config,
        family.postprocess,
        device=device,
        precision=precision,
        channels_last=True,
    )


def _of_transformers(source: str, device: str, precision: Precision) -> Subject:
    from detrkit.detectors.transformers import transformers_subject

    return transformers_subject(source, device=device, precision=precision)


def _detects_in_transformers(text: str) -> bool:
    """Whether a folder or hub id says of itself that it is an object detection model of transformers."""
    path = Path(text).expanduser() / "config.json"
    if not path.is_file():
        if text in PRESETS or Path(text).exists() or not _HUB_ID.fullmatch(text):
            return False
        import huggingface_hub

        try:
            path = Path(huggingface_hub.hf_hub_download(text, "config.json"))
        except (OSError, ValueError):  # no network, no such model: what was raised before says it better
            return False
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
        return any(str(name).endswith("ForObjectDetection") for name in config.get("architectures") or ())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _with_hint(error: DetrkitError, text: str) -> DetrkitError:
    """The error, with what else the source might mean."""
    import torchvision.models.detection

    if text in torchvision.models.list_models(module=torchvision.models.detection):
        return UsageError(f"{text} is one of torchvision's detectors; say {TORCHVISION}{text}")
    return error
