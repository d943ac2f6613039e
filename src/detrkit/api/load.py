"""``detrkit.load``: a detector from anything that a person calls a model."""

from __future__ import annotations

from typing import Literal

from detrkit.api.common import Source
from detrkit.config import Precision
from detrkit.detectors.detector import Detector
from detrkit.detectors.load import load_detector
from detrkit.threshold_file import find_threshold_file, read_thresholds


def load(
    source: Source,
    model: str | None = None,
    *,
    classes: Source | None = None,
    device: str = "auto",
    precision: Precision = "32",
    padding: Literal["exact", "published"] | None = None,
) -> Detector:
    """Load a detector: a preset, a run, a checkpoint, a published file, a hub folder or id, or an address.

    That of a run for which thresholds were chosen has them as its ``thresholds``, and predicts with them.

    Args:
        source: What to load; ``"detr-r50"`` fetches the published weights.
        model: What the file cannot tell: the preset the weights are for (DC5 changes no tensor's shape), or fields
            of the model, such as ``"num_heads=4,dilation=true"``.
        classes: Names of the head's rows, where the file holds none: ``"coco"``, a COCO JSON file, or a text file
            with a name a line.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        precision: ``32``, or ``bf16`` or ``16`` for mixed precision.
        padding: ``exact``: an image gives the same detections alone and in any batch. ``published``: what the
            authors' code does with padding, under which batch size changes detections. None: as configured.

    Raises:
        UsageError: The source is nothing that is known.
        WeightsError: The weights cannot be fetched, are damaged, or are of another model.
    """
    detector = load_detector(source, model, classes=classes, device=device, precision=precision, padding=padding)
    file = find_threshold_file(source)
    if file is not None:
        detector.thresholds = read_thresholds(file, detector.class_map)
    return detector
