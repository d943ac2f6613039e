"""``metrics.json``: every number of an evaluation for programs, as ``metrics.schema.json`` here describes it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detrkit.evaluation.coco import UNDEFINED, CocoMetrics
from detrkit.files import atomic_file

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation
    from detrkit.evaluation.bootstrap import Interval, Intervals
    from detrkit.evaluation.calibration import Calibration
    from detrkit.evaluation.confusion import Confusion
    from detrkit.evaluation.error_types import ErrorTypes
    from detrkit.evaluation.failures import Failures
    from detrkit.evaluation.score_curves import ScoreCurves

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("metrics.schema.json")
MOST_CONFUSED_CLASSES = 200
"""Beyond as many classes the matrix is left out: it would be most of the file."""


def write_metrics_json(path: str | Path, metrics: Evaluation | CocoMetrics) -> None:
    """Write the numbers: ``AP`` and so on at the top level; what is undefined is null."""
    content = metrics.to_dict() if isinstance(metrics, CocoMetrics) else metrics_content(metrics)
    with atomic_file(Path(path)) as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")


def metrics_content(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation, ready for JSON; parts that were not asked for are null."""
    origin, latency = evaluation.origin, evaluation.latency
    content = {"schema_version": SCHEMA_VERSION, **evaluation.metrics.to_dict()}
    for entry, more in zip(content["per_class"], _class_details(evaluation), strict=True):
        entry.update(more)
    return {
        **content,
        "objects_by_size": evaluation.objects_by_size(),
        "model": {"name": origin.model, "kind": origin.kind},
        "data": {
            "name": origin.data,
            "split": origin.split,
            "seen_in_training": origin.seen_in_training,
        },
        "intervals": None if evaluation.intervals is None else _intervals(evaluation.intervals),
        "errors": None if evaluation.errors is None else _errors(evaluation.errors, evaluation.score),
        "score_curves": None if evaluation.curves is None else _curves(evaluation.curves),
        "overlaps": _overlaps(evaluation),
        "confusion": _confusion(evaluation.confusion, evaluation.class_names),
        "calibration": None if evaluation.calibration is None else _calibration(evaluation.calibration),
        "failures": None if evaluation.failures is None else _failures(evaluation.failures),
        "latency": None if latency is None else latency.to_dict(),
        "provenance": dict(evaluation.provenance),
    }


def defined(value: float) -> float | None:
    """None for what is undefined, so that no program averages a -1."""
    return None if value == UNDEFINED or not math.isfinite(value) else float(value)


def _class_details(evaluation: Evaluation) -> list[dict[str, Any]]:
    """What is known of each class beyond its AP, by class id."""
    details: list[dict[str, Any]] = [{} for _ in evaluation.per_class]
    for class_id, entry in enumerate(details):
        if evaluation.intervals is not None:
            known = evaluation.intervals.per_class[class_id]
            entry["intervals"] = None if known is None else _by_name(known)
        if evaluation.curves is not None:
            entry["best_f1"] = defined(float(evaluation.curves.best_f1[class_id + 1]))
            entry["best_score"] = defined(float(evaluation.curves.best_score[class_id + 1]))
        if evaluation.overlaps is not None:
            entry["mean_iou"] = defined(float(evaluation.overlaps.per_class[class_id]))
        if evaluation.calibration is not None:
            entry["ece"] = defined(float(evaluation.calibration.per_class_ece[class_id]))
    return details


def _by_name(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    return {
        name: {"value": defined(entry.value), "low": defined(entry.low), "high": defined(entry.high)}
        for name, entry in intervals.items()
    }


def _intervals(intervals: Intervals) -> dict[str, Any]:
    return {
        "confidence": intervals.confidence,
        "resamples": intervals.resamples,
        "seed": intervals.seed,
        "values": _by_name(intervals.values),
    }


def _errors(errors: ErrorTypes, score: float) -> dict[str, Any]:
    return {
        "iou": 0.5,
        "ap50": defined(errors.ap50),
        "cost": {name: defined(value) for name, value in errors.cost.items()},
        "counts": dict(errors.counts),
        "at_best_score": {"score": score, "counts": errors.counts_above(score)},
    }


def _curves(curves: ScoreCurves) -> dict[str, Any]:
    """Those of all classes together; of single classes, the best values stand in ``per_class``."""
    return {
        "iou": curves.iou,
        "best_f1": defined(float(curves.best_f1[0])),
        "best_score": defined(float(curves.best_score[0])),
        "thresholds": _short(curves.thresholds),
        **{name: _short(getattr(curves, name)[0]) for name in ("precision", "recall", "f1")},
    }


def _overlaps(evaluation: Evaluation) -> dict[str, Any] | None:
    found = evaluation.overlaps
    if found is None:
        return None
    return {
        "mean": defined(found.mean),
        "by_size": {name: defined(value) for name, value in found.by_size.items()},
        "edges": _short(found.edges),
        "histogram": found.histogram.tolist(),
    }


def _confusion(confusion: Confusion | None, names: tuple[str, ...]) -> dict[str, Any] | None:
    """Rows are the truth, columns what was detected; the last of both is the background."""
    if confusion is None or len(names) > MOST_CONFUSED_CLASSES:
        return None
    return {
        "score": confusion.score,
        "iou": confusion.iou,
        "classes": [*names, None],
        "matrix": confusion.matrix.tolist(),
    }


def _calibration(calibration: Calibration) -> dict[str, Any]:
    return {
        "iou": calibration.iou,
        "ece": defined(calibration.ece),
        "mce": defined(calibration.mce),
        "edges": _short(calibration.edges),
        "counts": calibration.counts.tolist(),
        "confidence": _short(calibration.confidence),
        "accuracy": _short(calibration.accuracy),
    }


def _failures(failures: Failures) -> dict[str, Any]:
    return {
        "score": failures.score,
        "counts": dict(failures.counts),
        "suspect_labels": len(failures.label_issues),
    }


def _short(values: np.ndarray) -> list[float | None]:
    """Five digits, which is more than a curve shows."""
    return [None if value is None else float(f"{value:.5g}") for value in map(defined, values.tolist())]
