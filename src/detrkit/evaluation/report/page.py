"""``report.html``: an evaluation as one page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.evaluation.failures import failure_sections
from detrkit.evaluation.report.numbers import (
    class_section,
    curve_section,
    numbers_section,
    overlap_section,
    summary_section,
)
from detrkit.evaluation.report.reasons import (
    calibration_section,
    confusion_section,
    error_section,
    latency_section,
    origin_section,
)
from detrkit.visual.page import Section, write_page

if TYPE_CHECKING:
    from detrkit.evaluation.analysis import Evaluation


def report_sections(evaluation: Evaluation) -> list[Section]:
    """All sections of the report, in order."""
    sections = [summary_section(evaluation), numbers_section(evaluation), class_section(evaluation)]
    if evaluation.errors is not None:
        sections.append(error_section(evaluation))
    if evaluation.failures is not None:
        sections += failure_sections(evaluation.failures)
    sections.append(curve_section(evaluation))
    if evaluation.errors is not None:
        sections += [
            confusion_section(evaluation),
            overlap_section(evaluation),
            calibration_section(evaluation),
        ]
    if evaluation.latency is not None:
        sections.append(latency_section(evaluation.latency))
    return [*sections, origin_section(evaluation)]


def write_report(path: str | Path, evaluation: Evaluation) -> Path:
    """Write the page."""
    origin = evaluation.origin
    title = f"Evaluation of {origin.model}" if origin.model else "Evaluation"
    created = str(evaluation.provenance["created"])
    subtitle = " · ".join(part for part in (origin.data, origin.split, created) if part)
    return write_page(path, title, subtitle, report_sections(evaluation))
