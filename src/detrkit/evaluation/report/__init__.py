"""Evaluation results for people and programs: tables, a page, files."""

from detrkit.evaluation.report.metrics_file import metrics_content, write_metrics_json
from detrkit.evaluation.report.picture import plot_precision_recall
from detrkit.evaluation.report.tables import class_table, errors_table, metrics_table
from detrkit.evaluation.report.verdict import verdict, warnings
from detrkit.evaluation.report.write import write_evaluation

__all__ = [
    "class_table",
    "errors_table",
    "metrics_content",
    "metrics_table",
    "plot_precision_recall",
    "verdict",
    "warnings",
    "write_evaluation",
    "write_metrics_json",
]
