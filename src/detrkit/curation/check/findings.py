"""What ``detrkit data check`` found, counted by kind, with examples and places."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detrkit.curation.check.kinds import KINDS, Severity

SCHEMA_VERSION = 1
"""Of :meth:`CheckResult.to_dict`; raised when a key changes its meaning or goes."""
MAX_EXAMPLES = 5


class Place(NamedTuple):
    """Where a fault is.

    Args:
        split: Name of the split.
        image: Row in the table's images, -1 if none is concerned.
        annotation: Row in the table's annotations, -1 if none is concerned.
    """

    split: str
    image: int = -1
    annotation: int = -1


@dataclasses.dataclass(frozen=True)
class Finding:
    """Every case of one kind of fault.

    Args:
        kind: Stable name, a key of :data:`detrkit.curation.check.kinds.KINDS`.
        severity: How bad it is.
        title: What it is, in words.
        count: How often it was found.
        counts: The same by split; a fault between splits counts for the split named first in its example.
        examples: The first few cases.
        places: Images and annotations concerned, for pages and repairs.
        groups: Images that belong together, where the fault lies between images.
        advice: What it does to training, and what to do.
        repair: What ``--fix`` does about it; empty if a person has to decide.
    """

    kind: str
    severity: Severity
    title: str
    count: int
    counts: Mapping[str, int]
    examples: tuple[str, ...]
    places: tuple[Place, ...]
    groups: tuple[tuple[Place, ...], ...]
    advice: str
    repair: str

    @property
    def fixable(self) -> bool:
        """Whether ``--fix`` does something about it."""
        return bool(self.repair)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that it was found in."""
        return tuple(dict.fromkeys([*self.counts, *(place.split for place in self.places)]))

    def __str__(self) -> str:
        shown = "; ".join(self.examples[:3]) + ("; ..." if self.count > 3 else "")
        return f"{self.severity.value}: {self.title}: {self.count} ({', '.join(self.splits)}): {shown}"


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """What was checked of a split, and why it was taken for one."""

    name: str
    layout: str
    reason: str
    annotations: Path
    images: Path
    image_count: int
    annotation_count: int
    class_count: int


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """All findings of a data set.

    Args:
        data: The folder or file that was checked.
        splits: What was read.
        findings: One per kind, the worst first.
        images_checked: Image files that were opened; 0 if that was not wanted.
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
        return min((finding.severity for finding in self.findings), key=list(Severity).index, default=None)

    @property
    def is_clean(self) -> bool:
        """Whether there are neither errors nor warnings."""
        return self.worst in (None, Severity.NOTE)

    def count(self, kind: str) -> int:
        """How often a kind was found."""
        return next((finding.count for finding in self.findings if finding.kind == kind), 0)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity is severity)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the schema is described in docs/checking.md."""
        totals = {severity.value: len(self.of(severity)) for severity in Severity}
        return {
            "schema_version": SCHEMA_VERSION,
            "data": str(self.data),
            "clean": self.is_clean,
            "worst": self.worst.value if self.worst else None,
            "kinds_found": totals,
            "images_checked": self.images_checked,
            "skipped": list(self.skipped),
            "splits": [_summary_dict(split) for split in self.splits],
            "findings": [_finding_dict(finding) for finding in self.findings],
        }

    def lines(self) -> list[str]:
        """One line a finding, for printing."""
        return [str(finding) for finding in self.findings]


class Findings:
    """Collects findings while a data set is checked."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}
        self._examples: dict[str, list[str]] = {}
        self._places: dict[str, list[Place]] = {}
        self._groups: dict[str, list[tuple[Place, ...]]] = {}

    def add(self, kind: str, place: Place, example: str, count: int = 1) -> None:
        """Count one case; the first few examples are kept."""
        self._count(kind, place.split, count)
        self._example(kind, place.split, example)
        self._places.setdefault(kind, []).append(place)

    def add_rows(
        self,
        kind: str,
        split: str,
        places: Iterable[tuple[int, int]],
        describe: Callable[[int], str],
    ) -> None:
        """Count many cases of a split.

        Args:
            kind: Their kind.
            split: Name of the split.
            places: Image row and annotation row of each.
            describe: Gives the example of the case at a position; called for the first few only.
        """
        kept = self._places.setdefault(kind, [])
        number = 0
        for number, (image, annotation) in enumerate(places, start=1):
            kept.append(Place(split, image, annotation))
            if number <= MAX_EXAMPLES:
                self._example(kind, split, describe(number - 1))
        if number:
            self._count(kind, split, number)

    def add_group(self, kind: str, group: Sequence[Place], example: str) -> None:
        """Count one case that lies between images."""
        self._count(kind, group[0].split, 1)
        self._example(kind, "", example)
        self._places.setdefault(kind, []).extend(group)
        self._groups.setdefault(kind, []).append(tuple(group))

    def build(self) -> tuple[Finding, ...]:
        """The findings so far, the worst first."""
        order = {name: (list(Severity).index(kind.severity), at) for at, (name, kind) in enumerate(KINDS.items())}
        return tuple(self._finding(name) for name in sorted(self._counts, key=order.__getitem__))

    def _finding(self, name: str) -> Finding:
        kind = KINDS[name]
        return Finding(
            kind=name,
            severity=kind.severity,
            title=kind.title,
            count=sum(self._counts[name].values()),
            counts=dict(self._counts[name]),
            examples=tuple(self._examples[name]),
            places=tuple(self._places.get(name, ())),
            groups=tuple(self._groups.get(name, ())),
            advice=kind.advice,
            repair=kind.repair,
        )

    def _count(self, kind: str, split: str, count: int) -> None:
        counts = self._counts.setdefault(kind, {})
        counts[split] = counts.get(split, 0) + count

    def _example(self, kind: str, split: str, example: str) -> None:
        examples = self._examples.setdefault(kind, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(f"{split}: {example}" if split else example)


def rows_of(finding: Finding | None, split: str) -> np.ndarray:
    """Annotation rows of a split that a finding concerns, int64."""
    if finding is None:
        return np.zeros(0, dtype=np.int64)
    rows = [place.annotation for place in finding.places if place.split == split and place.annotation >= 0]
    return np.array(rows, dtype=np.int64)


def _summary_dict(split: SplitSummary) -> dict[str, Any]:
    return {
        "name": split.name,
        "layout": split.layout,
        "reason": split.reason,
        "annotations": str(split.annotations),
        "images": str(split.images),
        "image_count": split.image_count,
        "annotation_count": split.annotation_count,
        "class_count": split.class_count,
    }


def _finding_dict(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "severity": finding.severity.value,
        "title": finding.title,
        "count": finding.count,
        "counts": dict(finding.counts),
        "splits": list(finding.splits),
        "examples": list(finding.examples),
        "advice": finding.advice,
        "fixable": finding.fixable,
        "fix": finding.repair or None,
    }
