"""Every fault that a data set can have, by the catalogue ``faults.toml``, and how often which were found.

Reading a split, ``detrkit data check`` and its ``--fix`` all name faults by the codes of :data:`FAULTS`.

An error makes training fail or learn the wrong thing; a warning is probably a fault; a note is worth knowing and
may be meant. What no machine can put right, such as a class with three examples, is a note.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from detrkit.errors import DataError, counted, listed
from detrkit.files import read_facts

MAX_EXAMPLES = 5
MOST_LOST = 0.5
"""Share of the objects of a split from which on a reading or a copy without them is no success."""
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
        loses: What one case takes away when a split is read: ``object``, ``image`` or ``label file``, each with
            the objects in it; ``copy`` of an object that stays; empty if nothing.
    """

    kind: str
    severity: Severity
    title: str
    advice: str
    fix: str = ""
    reading: str = ""
    loses: str = ""


_CATALOGUE = read_facts(__file__)
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
        objects: Number of objects that reading lost by it.
    """

    kind: str
    counts: Mapping[str, int]
    examples: tuple[str, ...]
    locations: tuple[Location, ...] = ()
    groups: tuple[tuple[Location, ...], ...] = ()
    objects: int = 0

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
class Ledger:
    """Account of one split: what its files hold is what was read, and what was left out by kind of fault.

    Args:
        objects_found: Objects in the annotation files, lines that cannot be read included.
        objects_read: Objects of them that were read.
        objects_left_out: Number of the others by kind of fault.
        images_found: Images that are listed, or lie there.
        images_read: Images of them that were read.
        images_left_out: Number of the others by kind of fault.
        classes: Objects found and objects read of each class, by its name; objects without a class are in none.
        id_shift: By how much all category ids of the objects are wrong, so that no class is sure.
    """

    objects_found: int = 0
    objects_read: int = 0
    objects_left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    images_found: int = 0
    images_read: int = 0
    images_left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    classes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    id_shift: int = 0

    def __post_init__(self) -> None:
        assert self.objects_found == self.objects_read + sum(self.objects_left_out.values()), self
        assert self.images_found == self.images_read + sum(self.images_left_out.values()), self

    @property
    def objects_lost(self) -> int:
        """Number of objects left out, without copies of those that stay."""
        return sum(count for kind, count in self.objects_left_out.items() if FAULTS[kind].loses != "copy")

    def losses(self) -> list[str]:
        """Return the reasons why too much was lost to call it a success; empty if it was not."""
        lost, reasons = self.objects_lost, []
        total = self.objects_read + lost
        if lost > MOST_LOST * total:
            reasons.append(f"{f'{lost:,}' if self.objects_read else 'all'} of {counted(total, 'object')} are lost")
        unread, images = self.images_left_out.get("label_file_unreadable", 0), self.images_found
        if unread > MOST_LOST * images:
            reasons.append(f"label files of {unread:,} of {counted(images, 'image')} cannot be read")
        gone = [name for name, (found, read) in self.classes.items() if found and not read]
        if gone and self.objects_read:
            reasons.append(f"no object is left of {counted(len(gone), 'class', 'classes')}: {listed(gone)}")
        if self.id_shift and self.objects_read:
            which = "low" if self.id_shift > 0 else "high"
            reasons.append(f"category ids of all objects seem to be one too {which}: every class is another")
        return reasons

    def __str__(self) -> str:
        """Name what was left out and why; empty if nothing was."""
        parts = []
        for left_out, found, noun in (
            (self.objects_left_out, self.objects_found, "object"),
            (self.images_left_out, self.images_found, "image"),
        ):
            if left_out:
                reasons = "; ".join(f"{count:,}: {FAULTS[kind].title}" for kind, count in left_out.items())
                parts.append(f"{sum(left_out.values()):,} of {counted(found, noun)} ({reasons})")
        return " and ".join(parts)


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """Every fault that was met while one split was read; empty if it is sound.

    Args:
        source: Its annotation file or folder.
        findings: One per kind, the worst first.
        ledger: Account of its objects and images; empty until the whole split is read.
    """

    source: str
    findings: tuple[Finding, ...] = ()
    ledger: Ledger = Ledger()

    @property
    def is_sound(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def count(self, kind: str) -> int:
        """Return how often a kind was found."""
        return next((finding.count for finding in self.findings if finding.kind == kind), 0)

    def examples(self, kind: str) -> tuple[str, ...]:
        """Return the first few cases of a kind, in words."""
        return next((finding.examples for finding in self.findings if finding.kind == kind), ())

    def lines(self) -> list[str]:
        """Describe each finding, and what reading did about it, in one line; then what was left out."""
        lines = [
            f"{self.source}: {found.count} {found.fault.title} ({found.fault.reading or found.fault.fix}): "
            f"{found.shown}"
            for found in self.findings
        ]
        left_out, losses = str(self.ledger), self.ledger.losses()
        if left_out:
            most = f"; WARNING: {', and '.join(losses)}" if losses else ""
            lines.append(f"{self.source}: left out: {left_out}{most}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON: the lines for people, and the account."""
        return {"findings": self.lines(), "ledger": dataclasses.asdict(self.ledger)}

    def refuse_losses(self, advice: str) -> None:
        """Refuse a reading that lost most objects of the split, or all of a class.

        Raises:
            DataError: It did; the message has all that was found, and ends with the advice.
        """
        if losses := self.ledger.losses():
            raise DataError(f"{self.source}: {', and '.join(losses)}; {advice}:\n{self}")

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
        self._objects = Counter({finding.kind: finding.objects for finding in findings})

    def add(
        self, kind: str, example: str, location: Location | None = None, count: int = 1, objects: int | None = None
    ) -> None:
        """Count one case, or some alike; the first few examples are kept.

        Args:
            kind: Key of :data:`FAULTS`.
            example: Case in words.
            location: Place of it.
            count: Number of cases.
            objects: Number of objects lost with it; if None, one for each case of a fault that loses an object.
        """
        self._objects[kind] += (count if FAULTS[kind].loses == "object" else 0) if objects is None else objects
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
                objects=self._objects[kind],
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
