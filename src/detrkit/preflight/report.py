"""The results of a preflight: one per question, and a verdict."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from typing import Any

from detrkit.files import read_facts, to_plain

ADVICE: Mapping[str, str] = read_facts(__file__)
"""What to do about each fault for which it is always the same."""


class Outcome(enum.StrEnum):
    """How a question was answered, the worst first."""

    FAULT = "fault"
    WARNING = "warning"
    NOTE = "note"
    OK = "ok"


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The answer to one question.

    Args:
        name: Stable name of what was found, such as ``labels_shuffled``, or of the question if all is well.
        outcome: ``fault`` means that training would fail or learn the wrong thing.
        found: What was seen, with figures.
        advice: What to do; empty if nothing.
        figures: The same for programs.
    """

    name: str
    outcome: Outcome
    found: str
    advice: str = ""
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def line(self) -> str:
        """Return the answer for people."""
        urgent = self.outcome in (Outcome.FAULT, Outcome.WARNING)
        mark = self.outcome.upper() if urgent else self.outcome
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{mark:7} {self.name}: {self.found}{advice}"


def ok(name: str, found: str, figures: Mapping[str, Any] | None = None) -> CheckResult:
    """Make the answer that all is well."""
    return CheckResult(name, Outcome.OK, found, figures=figures or {})


def bad(
    name: str, found: str, figures: Mapping[str, Any] | None = None, *, advice: str = "", fault: bool = True
) -> CheckResult:
    """Make an answer that names a fault, or a warning if ``fault`` is False; its advice is by :data:`ADVICE`."""
    outcome = Outcome.FAULT if fault else Outcome.WARNING
    return CheckResult(name, outcome, found, advice or ADVICE.get(name, ""), figures or {})


@dataclasses.dataclass(frozen=True)
class PreflightReport:
    """The results of a preflight."""

    results: tuple[CheckResult, ...]

    @property
    def ready(self) -> bool:
        """Return whether no fault was found."""
        return not self.of(Outcome.FAULT)

    def of(self, outcome: Outcome) -> tuple[CheckResult, ...]:
        """Return the results of one outcome."""
        return tuple(result for result in self.results if result.outcome == outcome)

    def summary(self) -> str:
        """Return the verdict in a sentence, with its reasons."""
        faults, warnings = self.of(Outcome.FAULT), self.of(Outcome.WARNING)
        doubts = f"; {len(warnings)} to look at: {_names(warnings)}" if warnings else ""
        return f"NOT READY: {_names(faults)}{doubts}" if faults else f"READY{doubts}"

    def lines(self) -> list[str]:
        """Return the verdict for people."""
        return [self.summary()]

    def to_dict(self) -> dict[str, Any]:
        """Return what ``verdict.json`` holds; numbers that are not finite are None, since JSON has none."""
        found = [dataclasses.asdict(result) for result in self.results]
        written = json.dumps(found, default=to_plain)
        judgements = json.loads(written, parse_constant=lambda _name: None)
        return {"schema_version": 1, "ready": self.ready, "summary": self.summary(), "judgements": judgements}


def _names(results: tuple[CheckResult, ...]) -> str:
    return ", ".join(dict.fromkeys(result.name for result in results))
