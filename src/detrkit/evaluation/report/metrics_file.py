"""``metrics.json``: every number of an evaluation for programs, by the schema in ``metrics.schema.json``."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detrkit.evaluation.bootstrap import Interval
from detrkit.evaluation.coco import CocoMetrics, known
from detrkit.files import atomic_file

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation
    from detrkit.evaluation.panoptic import PanopticMetrics

MOST_CONFUSED_CLASSES = 200
"""Beyond as many classes the matrix is left out: it would be most of the file."""


@functools.cache
def metrics_schema() -> dict[str, Any]:
    """Return the JSON Schema of metrics.json; the entry ``MetricsFile`` of its ``$defs`` is the whole file."""
    folder = importlib.resources.files("detrkit.evaluation.report")
    schema: dict[str, Any] = json.loads(folder.joinpath("metrics.schema.json").read_text(encoding="utf-8"))
    return schema


def write_metrics_json(path: str | Path, metrics: Evaluation | CocoMetrics) -> None:
    """Write the numbers: ``AP`` and so on at the top level; what is undefined is null."""
    content = metrics.to_dict() if isinstance(metrics, CocoMetrics) else metrics_content(metrics)
    with atomic_file(Path(path)) as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")


def metrics_content(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation ready for JSON; parts that were not asked for are null."""
    errors, curves, origin = evaluation.errors, evaluation.curves, evaluation.origin
    failures, latency, confusion = evaluation.failures, evaluation.latency, evaluation.confusion
    names, score = evaluation.class_names, evaluation.score
    # what the schema does not find under its own names
    together = {}
    if curves is not None:
        of_all = ("best_f1", "best_score", "precision", "recall", "f1")
        together = {name: _plain(getattr(curves, name)[0]) for name in of_all}
    above = None if errors is None else {"score": score, "counts": errors.counts_above(score)}
    issues = 0 if failures is None else len(failures.label_issues)
    if len(names) > MOST_CONFUSED_CLASSES:
        confusion = None
    panoptic = None
    if (found := evaluation.panoptic) is not None:
        more = {"interval": _plain(found.interval), "losses": dict(found.losses)}
        panoptic = {**panoptic_content(found.metrics), **more}
    # everything else is taken by name
    content = evaluation.metrics.to_dict()
    content |= {
        "schema_version": 1,
        "per_class": [_class_entry(evaluation, *entry) for entry in enumerate(content["per_class"])],
        "objects_by_size": evaluation.objects_by_size(),
        "other_readings": dict(evaluation.other_readings),
        "notes": list(evaluation.notes),
        "model": {"name": origin.model, "kind": origin.kind},
        "data": {"name": origin.data, "split": origin.split, "seen_in_training": origin.seen_in_training},
        "intervals": _entry("IntervalsEntry", evaluation.intervals),
        "errors": _entry("ErrorsEntry", errors, iou=0.5, at_best_score=above),
        # those of all classes together; of single classes, the best values stand in per_class
        "score_curves": _entry("ScoreCurvesEntry", curves, **together),
        "overlaps": _entry("OverlapsEntry", evaluation.overlaps),
        "confusion": _entry("ConfusionEntry", confusion, classes=[*names, None]),
        "calibration": _entry("CalibrationEntry", evaluation.calibration),
        "failures": _entry("FailuresEntry", failures, suspect_labels=issues),
        "latency": None if latency is None else latency.to_dict(),
        "provenance": dict(evaluation.provenance),
        "masks": None if evaluation.masks is None else evaluation.masks.to_dict(),
        "mask_intervals": _entry("IntervalsEntry", evaluation.mask_intervals),
        "panoptic": panoptic,
    }
    return {name: content[name] for name in metrics_schema()["$defs"]["MetricsFile"]["properties"]}


def _class_entry(evaluation: Evaluation, class_id: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a class: its AP, and what was asked for beyond."""
    curves, overlaps, calibration = evaluation.curves, evaluation.overlaps, evaluation.calibration
    found = dict(entry)
    if evaluation.intervals is not None:
        found["intervals"] = _plain(evaluation.intervals.per_class[class_id])
    if curves is not None:
        found["best_f1"] = known(curves.best_f1[class_id + 1])
        found["best_score"] = known(curves.best_score[class_id + 1])
    if overlaps is not None:
        found["mean_iou"] = known(overlaps.per_class[class_id])
    if calibration is not None:
        found["ece"] = known(calibration.per_class_ece[class_id])
    return found


def panoptic_content(metrics: PanopticMetrics) -> dict[str, Any]:
    """Return PQ, SQ, RQ, and so on at the top, as the numbers of boxes."""
    return {
        **{name: known(value) for name, value in metrics.values.items()},
        "segments": metrics.segments,
        "per_class": [
            {name: known(value) if name.isupper() else value for name, value in vars(entry).items()}
            for entry in metrics.per_class
        ],
    }


def _entry(kind: str, source: object, **given: Any) -> dict[str, Any] | None:
    """Return an entry of the schema: attributes of what was measured, but for those given; None of None."""
    if source is None:
        return None
    names = metrics_schema()["$defs"][kind]["properties"]
    return {name: given[name] if name in given else _plain(getattr(source, name)) for name in names}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; of a curve five digits, which is more than it shows."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "i":
            return value.tolist()
        return [None if number is None else float(f"{number:.5g}") for number in map(known, value.tolist())]
    if isinstance(value, Interval):
        return _entry("IntervalEntry", value)
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return known(value) if isinstance(value, float) else value
