"""AP of detectors on a split as a bundle's report has it, by the evaluator of ``detrkit eval``."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from detrkit.classes import match_classes
from detrkit.data.split import Split
from detrkit.detectors.detector import Detector
from detrkit.detectors.on_split import bind_target, collect, read_split_for
from detrkit.errors import DataError
from detrkit.evaluation.bootstrap import bootstrap, paired_bootstrap
from detrkit.evaluation.evaluator import CocoEvaluator
from detrkit.evaluation.truth import CocoTruth, ground_truth_from_index
from detrkit.runtimes.report import Accuracy, Interval

Progress = Callable[[str, int, int], None]
"""Called with what is being done, images done and images in all."""


@dataclasses.dataclass(frozen=True)
class AccuracyData:
    """Data to measure AP on.

    Args:
        data: Data set, and what people call it.
        split: Its split.
        progress: Receives how far that is.
    """

    data: str | os.PathLike[str]
    split: str = "val"
    progress: Progress | None = None


def read_accuracy_split(detector: Detector, on: AccuracyData) -> Split:
    """Read a split to measure on, before the work whose result is measured.

    Raises:
        DataError: It cannot be read, has no object, or no class of the detector.
    """
    part, _ = read_split_for([detector], on.split, on.data, masks=True)
    if not len(part.index.labels):
        raise DataError(f"{on.data}, {on.split}: there is no object, and so no AP; give a split with annotations")
    match_classes(bind_target(detector, part).class_map, part.index.class_map)
    return part


def measure_accuracy(
    detector: Detector,
    part: Split,
    on: AccuracyData,
    *,
    torch_detector: Detector | None = None,
    paired: bool = False,
) -> Accuracy:
    """Measure AP of a bundle, and of the model in torch, on the same images.

    Args:
        detector: The bundle.
        part: Images and annotations, of :func:`read_accuracy_split`.
        on: Where they are from.
        torch_detector: The model in torch, or what else it is held to.
        paired: Measure the interval of the difference too.
    """
    truth = ground_truth_from_index(part.index)
    whole = "AP in float32" if paired else "AP in torch"

    def step(what: str) -> Callable[[int], None] | None:
        progress = on.progress
        return None if progress is None else lambda done: progress(what, done, len(part.index))

    evaluator = collect(detector, part, truth=truth, progress=step("AP of the bundle"))
    metrics = evaluator.finish()
    interval = bootstrap(evaluator.matches()).values.get("AP")
    accuracy = Accuracy(
        data=Path(on.data).name or os.fspath(on.data),
        split=on.split,
        sha256=_digest(truth, part),
        images=metrics.images,
        objects=metrics.objects,
        ap=metrics["AP"],
        ap50=metrics["AP50"],
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        masks=_masks(evaluator),
    )
    if torch_detector is None:
        return accuracy
    collected = collect(torch_detector, part, truth=truth, progress=step(whole))
    change = paired_bootstrap(collected.matches(), evaluator.matches()).values.get("AP") if paired else None
    return msgspec.structs.replace(
        accuracy,
        torch_ap=collected.finish()["AP"],
        torch_masks=_masks(collected),
        change=None if change is None else Interval(change.value, change.low, change.high),
    )


def _masks(evaluator: CocoEvaluator) -> dict[str, float]:
    """Return AP of masks and PQ, as far as there are such."""
    if not (evaluator.has_masks or evaluator.has_panoptic):
        return {}
    every = evaluator.finish_all()
    found = {name: every[name] for name in ("mask_AP", "PQ") if name in every}
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def _digest(truth: CocoTruth, part: Split) -> str:
    """Return a hash of the annotations that counts what AP depends on, and not where the files lie."""
    digest = hashlib.sha256("\0".join(truth.class_map.names).encode("utf-8", "surrogatepass"))
    for column in (truth.image_rows, truth.class_ids, truth.boxes_xywh, truth.area, truth.iscrowd):
        digest.update(np.ascontiguousarray(column).tobytes() + b"\0")
    for row in range(len(part.index)):
        digest.update(Path(part.index.file_name(row)).name.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
