"""Evaluation results for people and programs: tables, a page, files."""

from detrkit.evaluation.report.masks import mask_tables, panoptic_table
from detrkit.evaluation.report.metrics_file import (
    metrics_content,
    metrics_schema,
    panoptic_content,
    write_metrics_json,
)
from detrkit.evaluation.report.page import FILES, plot_precision_recall, write_evaluation
from detrkit.evaluation.report.tables import CLASS_COLUMNS, class_table, errors_table, metrics_table
from detrkit.evaluation.report.verdict import verdict, warnings

__all__ = [
    "CLASS_COLUMNS",
    "FILES",
    "class_table",
    "errors_table",
    "mask_tables",
    "metrics_content",
    "metrics_schema",
    "metrics_table",
    "panoptic_content",
    "panoptic_table",
    "plot_precision_recall",
    "verdict",
    "warnings",
    "write_evaluation",
    "write_metrics_json",
]
