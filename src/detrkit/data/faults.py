"""Every fault that a data set can have, by the catalogue ``faults.toml``, and how often which were found.

Reading a split, ``detrkit data check`` and its ``--fix`` all name faults by the codes of :data:`FAULTS`.

An error makes training fail or learn the wrong thing; a warning is probably a fault; a note is worth knowing and
may be meant. What no machine can put right, such as a class with three examples, is a note.
"""

from __future__ import annotations

import dataclasses
import enum
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

MAX_EXAMPLES = 5
_SHOWN = 3


class Severity(enum.StrEnum):
    """How bad a fault is, the worst first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Fault(NamedTuple):
    """One kind of fault.

    Args:
        kind: Stable code.
        severity: How bad it is.
        title: Meaning, in one line.
        advice: Harm that it does, and what to do.
        fix: What ``--fix`` does about it; empty if a person has to decide.
        reading: What reading for training does about it, where that differs from ``fix``.
    """

    kind: str
    severity: Severity
    title: str
    advice: str
    fix: str = ""
    reading: str = ""


_CATALOGUE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
FAULTS: Mapping[str, Fault] = {
    kind: Fault(kind, Severity(words.pop("severity")), **words) for kind, words in _CATALOGUE.items()
}
"""Every kind of fault by its code."""
_ORDER = {kind: (list(Severity).index(FAULTS[kind].severity), row) for row, kind in enumerate(FAULTS)}


class Location(NamedTuple):
    """Where a fault is.

    Args:
        split: Name of the split; empty while one split is read.
        image: Row in the table's images, -1 if none is concerned.
        annotation: Row in the table's annotations, -1 if none is concerned.
    """

    split: str = ""
    image: int = -1
    annotation: int = -1


@dataclasses.dataclass(frozen=True)
class Finding:
    """Every case of one kind of fault that was found.

    Args:
        kind: Key of :data:`FAULTS`.
        counts: How often it was found, by split; a fault between splits counts for the split named first.
        examples: The first few cases, in words.
        locations: Images and annotations concerned.
        groups: Images that belong together, where the fault lies between images.
    """

    kind: str
    counts: Mapping[str, int]
    examples: tuple[str, ...]
    locations: tuple[Location, ...] = ()
    groups: tuple[tuple[Location, ...], ...] = ()

    @property
    def fault(self) -> Fault:
        """Its entry in the catalogue."""
        return FAULTS[self.kind]

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return self.fault.severity

    @property
    def count(self) -> int:
        """How often it was found."""
        return sum(self.counts.values())

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that it was found in."""
        return tuple(dict.fromkeys([*self.counts, *(location.split for location in self.locations)]))

    @property
    def shown(self) -> str:
        """The first examples on one line."""
        return "; ".join(self.examples[:_SHOWN]) + ("; ..." if self.count > _SHOWN else "")

    def __str__(self) -> str:
        return f"{self.severity}: {self.fault.title}: {self.count} ({', '.join(self.splits)}): {self.shown}"


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """Every fault that was met while one split was read; empty if it is sound.

    Args:
        source: Its annotation file or folder.
        findings: One per kind, the worst first.
    """

    source: str
    findings: tuple[Finding, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def count(self, kind: str) -> int:
        """Return how often a kind was found."""
        return next((finding.count for finding in self.findings if finding.kind == kind), 0)

    def lines(self) -> list[str]:
        """Describe each finding, and what reading did about it, in one line."""
        return [
            f"{self.source}: {found.count} {found.fault.title} ({found.fault.reading or found.fault.fix}): "
            f"{found.shown}"
            for found in self.findings
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines()) or f"{self.source}: no faults"


class Findings:
    """Collects findings while a data set is read or checked.

    Args:
        source: File or folder that is read, for the report.
        findings: Findings to go on from.
    """

    def __init__(self, source: str = "", findings: Sequence[Finding] = ()) -> None:
        self.source = source
        self._counts = {finding.kind: Counter(finding.counts) for finding in findings}
        self._examples = {finding.kind: list(finding.examples) for finding in findings}
        self._locations: dict[str, list[Location]] = {}
        self._groups: dict[str, list[tuple[Location, ...]]] = {}

    def add(self, kind: str, example: str, location: Location | None = None, count: int = 1) -> None:
        """Count one case, or some alike; the first few examples are kept."""
        split = location.split if location else ""
        self._count(kind, f"{split}: {example}" if split and example else example, split, count)
        if location:
            self._locations.setdefault(kind, []).append(location)

    def add_group(self, kind: str, group: Sequence[Location], example: str) -> None:
        """Count one case that lies between images."""
        self._count(kind, example, group[0].split, 1)
        self._locations.setdefault(kind, []).extend(group)
        self._groups.setdefault(kind, []).append(tuple(group))

    def build(self) -> tuple[Finding, ...]:
        """Return the findings so far, the worst first."""
        return tuple(
            Finding(
                kind=kind,
                counts=dict(self._counts[kind]),
                examples=tuple(self._examples[kind]),
                locations=tuple(self._locations.get(kind, ())),
                groups=tuple(self._groups.get(kind, ())),
            )
            for kind in sorted(self._counts, key=_ORDER.__getitem__)
        )

    def report(self) -> ReadReport:
        """Return the findings so far as the report of one split."""
        return ReadReport(self.source, self.build())

    def _count(self, kind: str, example: str, split: str, count: int) -> None:
        self._counts.setdefault(kind, Counter())[split] += count
        examples = self._examples.setdefault(kind, [])
        if example and len(examples) < MAX_EXAMPLES:
            examples.append(example)
