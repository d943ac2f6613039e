"""Failures of a detector: every failure, the worst images, the labels to blame, and what failure goes with."""

from detrkit.evaluation.failures.causes import Cause
from detrkit.evaluation.failures.entries import KINDS, ImageResult
from detrkit.evaluation.failures.find import Failure, Failures, find_failures
from detrkit.evaluation.failures.label_issues import REASONS, LabelIssue
from detrkit.evaluation.failures.sections import failure_sections
from detrkit.evaluation.failures.tables import label_issues_as_coco, write_failures

__all__ = [
    "KINDS",
    "REASONS",
    "Cause",
    "Failure",
    "Failures",
    "ImageResult",
    "LabelIssue",
    "failure_sections",
    "find_failures",
    "label_issues_as_coco",
    "write_failures",
]
