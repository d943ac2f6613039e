"""What was wrong with an annotation file, counted, with a few examples of each."""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter

MAX_EXAMPLES = 3


class Defect(enum.Enum):
    """A kind of defect that reading repairs or leaves out; the value is (what, what was done)."""

    MISSING_IMAGE = ("listed image files do not exist", "left out")
    UNREADABLE_IMAGE = ("image files cannot be opened", "kept until they are to be decoded")
    UNLABELLED_IMAGE = ("images have no annotation file", "left out")
    UNREADABLE_LABELS = ("label files cannot be read", "left out with their images")
    NO_LABELS = ("images are of a split without any label file", "read as images without objects")
    ORPHAN_LABELS = ("label files have no image", "left out")
    OTHER_FILE_NAME = ("XML files name another image file", "the image with the name of the XML file is taken")
    CLASS_COUNT = ("numbers of classes differ from the number of class names", "the names count")
    REPEATED_FILE = ("images have the file name of another image", "kept")
    TEXT_ID = ("ids are text or fractions instead of integers", "converted")
    TEXT_NUMBER = ("boxes hold text instead of numbers", "converted")
    MISSING_SIZE = ("images have no usable width and height", "read from the files")
    TURNED_SIZE = ("images have width and height exchanged, against their EXIF orientation", "turned")
    REPEATED_ANNOTATION_ID = ("annotations have the id of another annotation", "kept")
    REPEATED_CLASS_NAME = ("categories have the name of another category", "kept")
    BAD_LINE = ("lines are not a class and a box", "left out")
    POLYGON = ("objects are polygons", "the box around each is taken")
    EXTRA_NUMBERS = ("lines have numbers after the box", "not read")
    DIFFICULT = ("objects are marked difficult", "as crowd: not trained on, not counted in evaluation")
    UNKNOWN_IMAGE = ("annotations belong to an image that is not listed", "left out")
    UNKNOWN_CATEGORY = ("annotations have a category that is not listed", "left out")
    MISSING_BOX = ("annotations have no box of four numbers", "left out")
    NON_FINITE_BOX = ("boxes hold NaN, infinity or something else than a number", "left out")
    EMPTY_BOX = ("boxes have no width or no height", "left out")
    OUTSIDE_BOX = ("boxes lie fully outside their image", "left out")
    CLIPPED_BOX = ("boxes leave their image", "clipped")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One kind of defect.

    Args:
        defect: The kind.
        count: How often it was found.
        examples: The first few, in words.
    """

    defect: Defect
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        what, action = self.defect.value
        shown = "; ".join(self.examples) + ("; ..." if self.count > len(self.examples) else "")
        return f"{self.count} {what} ({action}): {shown}"


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """Every defect of one annotation file; empty if it is sound.

    Args:
        source: The file.
        findings: One per kind, most serious first.
    """

    source: str
    findings: tuple[Finding, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def count(self, defect: Defect) -> int:
        """How often a defect was found."""
        return next((finding.count for finding in self.findings if finding.defect is defect), 0)

    def lines(self) -> list[str]:
        """One line a finding, for printing."""
        return [f"{self.source}: {finding}" for finding in self.findings]

    def __str__(self) -> str:
        return "\n".join(self.lines()) or f"{self.source}: no defects"


class ReportBuilder:
    """Counts defects while a file is read."""

    def __init__(self, source: str):
        self._source = source
        self._counts: Counter[Defect] = Counter()
        self._examples: dict[Defect, list[str]] = {}

    @classmethod
    def from_report(cls, report: ReadReport) -> ReportBuilder:
        """A builder that goes on from a report."""
        builder = cls(report.source)
        for finding in report.findings:
            builder._counts[finding.defect] = finding.count
            builder._examples[finding.defect] = list(finding.examples)
        return builder

    def add(self, defect: Defect, example: str, count: int = 1) -> None:
        """Count a defect; the first few examples are kept."""
        self._counts[defect] += count
        examples = self._examples.setdefault(defect, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(example)

    def build(self) -> ReadReport:
        """The report so far."""
        findings = (
            Finding(kind, self._counts[kind], tuple(self._examples[kind])) for kind in Defect if self._counts[kind]
        )
        return ReadReport(self._source, tuple(findings))
