"""Finding what is to be measured by its name: detrkit's own model, another toolkit's, or a file of detections."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from detrkit.config import Precision
from detrkit.detectors.detector import Detector
from detrkit.detectors.load import load_detector
from detrkit.detectors.on_split import EvalTarget
from detrkit.detectors.results import EXPECTED, ResultsFile, is_results_file
from detrkit.errors import CheckpointError, UsageError, WeightsError
from detrkit.families.presets import PRESETS
from detrkit.files import parse_json

TORCHVISION = "torchvision:"
TRANSFORMERS = "hf:"

_TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".xml")
_TO_JSON = "make one such entry of each row; of a file with an entry a line: jq -s . FILE.jsonl > FILE.json"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

logger = logging.getLogger(__name__)


def find_target(
    model: str | os.PathLike[str] | EvalTarget,
    preset: str | None = None,
    device: str = "auto",
    precision: Precision = "32",
) -> EvalTarget:
    """Find what is to be measured.

    Args:
        model: Anything that :func:`detrkit.load` takes; ``torchvision:NAME``, with ``@FILE`` or ``@random``
            behind it for other weights than the published; ``hf:ID`` or ``hf:FOLDER`` of a transformers model;
            or a ``.json`` file of detections in COCO's result format. A detector, or another target, is returned
            as it is.
        preset: Preset of detrkit's weights, where the file cannot tell.
        device: Device, as in :func:`detrkit.load`.
        precision: Precision, as in :func:`detrkit.load`.

    Raises:
        UsageError: The source is nothing that is known, or its toolkit is not installed.
        DetrkitError: It cannot be fetched or read.
    """
    if not isinstance(model, str | os.PathLike):
        return model
    # what says itself that it is not detrkit's
    text = os.fspath(model)
    foreign = text.startswith((TORCHVISION, TRANSFORMERS)) or is_results_file(text)
    if foreign and preset is not None:
        raise UsageError(f"{text} is not one of detrkit's models, so that preset {preset} says nothing of it")
    if text.startswith(TORCHVISION):
        from detrkit.detectors.torchvision import torchvision_detector

        return torchvision_detector(text.removeprefix(TORCHVISION), device=device, precision=precision)
    if text.startswith(TRANSFORMERS):
        return _from_transformers(text.removeprefix(TRANSFORMERS), device, precision)
    if is_results_file(text):
        return ResultsFile(text)
    # detrkit's own; else a model that transformers knows
    try:
        return load_detector(text, preset, device=device, precision=precision)
    except CheckpointError:
        raise
    except (UsageError, WeightsError) as error:
        if Path(text).suffix.lower() in _TABLES:
            raise UsageError(f"{text}: expected detections as a .json file with {EXPECTED}; {_TO_JSON}") from error
        if preset is None and _detects_in_transformers(text):
            logger.warning("detrkit has no such model, so transformers runs it, as %s%s", TRANSFORMERS, text)
            return _from_transformers(text, device, precision)
        import torchvision.models.detection

        if text in torchvision.models.list_models(module=torchvision.models.detection):
            raise UsageError(f"{text} is one of torchvision's detectors; say {TORCHVISION}{text}") from error
        raise


def _from_transformers(source: str, device: str, precision: Precision) -> Detector:
    from detrkit.detectors.transformers import transformers_detector

    return transformers_detector(source, device=device, precision=precision)


def _detects_in_transformers(text: str) -> bool:
    """Return True if a folder or hub id calls itself an object detection model of transformers."""
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
        config: Any = parse_json(path.read_text(encoding="utf-8"))
        return any(str(name).endswith("ForObjectDetection") for name in config.get("architectures") or ())
    except (OSError, ValueError, AttributeError, TypeError):
        return False
