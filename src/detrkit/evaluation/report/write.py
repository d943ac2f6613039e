"""All files of an evaluation in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.evaluation.coco import CocoEvaluator
from detrkit.evaluation.failures import write_failures
from detrkit.evaluation.report.metrics_file import write_metrics_json
from detrkit.evaluation.report.page import write_report
from detrkit.evaluation.report.picture import plot_precision_recall
from detrkit.evaluation.report.summary import write_summary

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation


def write_evaluation(folder: str | Path, evaluation: Evaluation, evaluator: CocoEvaluator) -> list[Path]:
    """Write everything there is to an existing folder, and return the files, the report first.

    Args:
        folder: Where to.
        evaluation: The result.
        evaluator: Whose detections it was made from.
    """
    folder = Path(folder)
    numbers, detections = folder / "metrics.json", folder / "detections.json"
    write_metrics_json(numbers, evaluation)
    evaluator.write_results_json(detections)
    files = [numbers, detections, plot_precision_recall(evaluation.metrics, folder / "precision_recall.png")]
    if evaluation.failures is not None:
        files += write_failures(evaluation.failures, folder)
    files.append(write_summary(folder / "summary.md", evaluation))
    return [write_report(folder / "report.html", evaluation), *files]
