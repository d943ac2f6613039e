"""The result of checking a data set, and its form as JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from detrkit.data.faults import Finding, Severity
from detrkit.visual.table import Column, Table, Value

SCHEMA_VERSION = 1
"""Of :meth:`CheckResult.to_dict`; raised when a key changes its meaning or goes."""


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """One split that was checked, and why it was taken for one."""

    name: str
    layout: str
    reason: str
    annotations: str
    images: str
    image_count: int
    annotation_count: int
    class_count: int


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """All findings of a data set.

    Args:
        data: Folder or file that was checked.
        splits: Splits that could be read.
        findings: One per kind, the worst first.
        images_checked: Number of image files that were opened; 0 if that was not wanted.
        skipped: Parts of the check that were not wanted or not possible, in words.
    """

    data: Path
    splits: tuple[SplitSummary, ...]
    findings: tuple[Finding, ...]
    images_checked: int
    skipped: tuple[str, ...] = ()

    @property
    def worst(self) -> Severity | None:
        """The greatest severity; None if nothing was found."""
        return self.findings[0].severity if self.findings else None

    @property
    def is_clean(self) -> bool:
        """Whether there are neither errors nor warnings."""
        return self.worst in (None, Severity.NOTE)

    def count(self, kind: str) -> int:
        """Return how often a kind was found."""
        return next((finding.count for finding in self.findings if finding.kind == kind), 0)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity is severity)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; docs/checking.md describes the keys."""
        return {
            "schema_version": SCHEMA_VERSION,
            "data": str(self.data),
            "clean": self.is_clean,
            "worst": self.worst,
            "kinds_found": {severity.value: len(self.of(severity)) for severity in Severity},
            "images_checked": self.images_checked,
            "skipped": self.skipped,
            "splits": [dataclasses.asdict(split) for split in self.splits],
            "findings": [_finding_dict(finding) for finding in self.findings],
        }

    def table(self) -> Table:
        """Return the findings as a table, the worst first, each with its first example."""
        columns = [Column("Severity"), Column("Finding"), Column("Name"), Column("Count", "count")]
        rows: list[list[Value]] = []
        for one in self.findings:
            example = next(iter(one.examples), None)
            rows.append([one.severity, one.fault.title, one.kind, one.count, ", ".join(one.splits), example])
        return Table([*columns, Column("Splits"), Column("Example")], rows, "Findings, the worst first")

    def lines(self) -> list[str]:
        """Describe each finding in one line."""
        return [str(finding) for finding in self.findings]


def _finding_dict(finding: Finding) -> dict[str, Any]:
    fault = finding.fault
    return {
        **{name: getattr(finding, name) for name in ("kind", "severity", "count", "counts", "splits", "examples")},
        **{name: getattr(fault, name) for name in ("title", "advice")},
        "fixable": bool(fault.fix),
        "fix": fault.fix or None,
    }
