"""``detrkit.verify``: prove that a bundle is whole and finds here what it found where it was written."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import msgspec

from detrkit.api.common import Source
from detrkit.runtimes.verify import Verification, verify_bundle

if TYPE_CHECKING:
    from detrkit.detectors.accuracy import Progress


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
        data: Data set to measure AP on.
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
    from detrkit.detectors.accuracy import measure_accuracy, read_accuracy_split
    from detrkit.detectors.bundle import predictor_detector
    from detrkit.runtimes.predictor import load

    report = verification.report
    detector = predictor_detector(load(bundle, report.runtime, threads), os.fspath(bundle))
    part = read_accuracy_split(detector, data, split)
    accuracy = measure_accuracy(detector, part, data=data, split=split, progress=progress)
    return dataclasses.replace(verification, report=msgspec.structs.replace(report, accuracy=accuracy))
