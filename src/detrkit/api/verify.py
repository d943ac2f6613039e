"""``detrkit.verify``: prove that a bundle is whole and finds here what it found where it was written."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from detrkit.api.common import Source
from detrkit.errors import DataError, UsageError
from detrkit.runtimes.verify import Verification, verify_bundle

if TYPE_CHECKING:
    from detrkit.data.split import Split
    from detrkit.detectors.accuracy import AccuracyData, Progress
    from detrkit.runtimes.predictor import Predictor


def verify(
    bundle: Source,
    *,
    runtime: str = "",
    threads: int | None = None,
    data: Source | None = None,
    split: str = "val",
    progress: Progress | None = None,
) -> Verification:
    """Check every file of a bundle, detect in its golden pictures again, time that, and measure AP where asked.

    Without ``data``, no torch is needed.

    Args:
        bundle: Folder or zip file that :func:`export` wrote.
        runtime: ``onnxruntime``, ``openvino``, ``openvino-bf16``, or ``auto`` for the faster in float32; if empty,
            what usually runs it.
        threads: Threads; as many as this process may use if not given.
        data: Data set to measure AP on; of the one that INT8 was calibrated on, without the images used for that.
        split: Split of the data set.
        progress: Receives how far that is.

    Returns:
        ``verification.passed``, ``verdict``, what differs in which picture, and what was measured.

    Raises:
        BundleError: The bundle is damaged, changed, of a newer version, or not to be trusted.
        DataError: The data cannot be read.
        UsageError: There is no such runtime, it is not installed, or the bundle gives raw outputs.
    """
    verification = verify_bundle(bundle, runtime, threads)
    if data is None:
        return verification
    from detrkit.detectors.accuracy import AccuracyData, measure_accuracy, read_accuracy_split
    from detrkit.detectors.bundle import predictor_detector
    from detrkit.runtimes.predictor import load

    report = verification.report
    predictor = load(bundle, report.runtime, threads)
    detector = predictor_detector(predictor, os.fspath(bundle))
    on = AccuracyData(data, split, progress)
    part = _read_apart(predictor, on) or read_accuracy_split(detector, on)
    accuracy = measure_accuracy(detector, part, on)
    return dataclasses.replace(verification, report=msgspec.structs.replace(report, accuracy=accuracy))


def _read_apart(predictor: Predictor, on: AccuracyData) -> Split | None:
    """Read a split without the images that INT8 was calibrated with; None where it was not, or on other data."""
    calibration = predictor.bundle.manifest.provenance.calibration or {}
    if calibration.get("data") != Path(on.data).name:
        return None
    from detrkit.export.quantize import read_apart

    try:
        return read_apart(predictor, on, str(calibration.get("split")))[0]
    except (DataError, UsageError):  # only the split that is measured on was taken along
        return None
